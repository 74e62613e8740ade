"""A text is computed once: later passes read the same logits, also when the engine is gone."""

from types import SimpleNamespace

import numpy as np
import pytest

from piston.calibration.search.cached_logits import CachedLogitsEngine
from piston.core.errors import MisuseError

VOCAB = 11


class Cache:
    """Knows how long its one row is."""

    def __init__(self):
        self.lengths = [0]

    def reserve(self, slot, count):
        pass

    def advance(self, slot, count):
        self.lengths[slot] += count

    def rewind(self, slot, length):
        self.lengths[slot] = length


class Engine:
    """Logits are a function of the whole text so far."""

    vocab_size = VOCAB

    def __init__(self):
        self.cache, self.text, self.passes, self.is_open = Cache(), [], 0, True

    def prefill(self, slot, token_ids, num_logits=1):
        self.passes += 1
        self.text = [*self.text[: self.cache.lengths[slot]], *token_ids]
        self.cache.advance(slot, len(token_ids))
        seed = int("".join(map(str, self.text)))
        return np.random.default_rng(seed).normal(size=(num_logits, VOCAB)).astype(np.float32)

    def close(self):
        self.is_open = False


@pytest.fixture
def rig(tmp_path):
    engine = Engine()
    remembered = CachedLogitsEngine(engine, tmp_path / "logits")
    yield SimpleNamespace(engine=engine, remembered=remembered, directory=tmp_path)
    remembered.close()


def read(engine, *pieces):
    engine.cache.rewind(0, 0)
    return [engine.prefill(0, piece, len(piece)) for piece in pieces]


def test_a_second_pass_reads_what_the_first_computed(rig):
    first, second = (read(rig.remembered, [1, 2], [3]) for _ in range(2))
    assert rig.engine.passes == 2
    assert [part.tolist() for part in first] == [part.tolist() for part in second]
    assert rig.remembered.cache.lengths == [3]


def test_a_piece_behind_another_text_is_another(rig):
    one, other = read(rig.remembered, [1, 2], [3])[1], read(rig.remembered, [2, 1], [3])[1]
    assert one.tolist() != other.tolist()


def test_what_was_read_is_known_when_the_engine_is_gone(rig):
    first = read(rig.remembered, [1, 2], [3])
    rig.remembered.let_go()
    assert not rig.engine.is_open
    assert [part.tolist() for part in read(rig.remembered, [1, 2], [3])] == [part.tolist() for part in first]
    with pytest.raises(MisuseError, match="was not read before"):
        read(rig.remembered, [4])


def test_closing_removes_the_file_and_twice_is_no_harm(rig):
    read(rig.remembered, [1])
    rig.remembered.let_go()
    rig.remembered.close()
    rig.remembered.close()
    assert not rig.engine.is_open
    assert list(rig.directory.iterdir()) == []


def test_it_only_reads(rig):
    with pytest.raises(MisuseError, match="only reads texts"):
        rig.remembered.step({0: 1})
