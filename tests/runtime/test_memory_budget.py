import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import manifest_of

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import FileRecord
from piston.core.errors import BundleCorruptError, HostMemoryError, MisuseError
from piston.runtime.memory_budget import WORKING, sizes_for, weights_bytes

CACHE = CacheSpec.of(num_layers=2, num_kv_heads=2, head_dim=16, dtype="float32")  # 512 bytes a position
FILES = {
    "ort-cpu/model.onnx": FileRecord(sha256="", size=1_000),
    "ort-cpu/model.onnx.data": FileRecord(sha256="", size=9_000),
    "tensorrt/model.plan": FileRecord(sha256="", size=500_000),
    "tokenizer.json": FileRecord(sha256="", size=70_000),
}
(ENGINE,) = manifest_of().engines


def sizes(*, batch=8, length=4096, limit=None, asked=(None, None), memory=None):
    spec = dataclasses.replace(
        ENGINE,
        states={"decoder": CACHE.states},
        requested={"max_batch": batch, "max_length": length},
        actual={"max_positions": limit or length},
    )
    manifest = manifest_of(files=FILES, engines=(spec,))
    result, remarks = sizes_for(manifest, spec, max_batch=asked[0], max_length=asked[1], memory=memory)
    return (result.num_slots, result.capacity), remarks


def room(positions):
    """Memory that leaves this many positions beside the weights."""
    return positions * 512 + 10_000 + WORKING


def test_without_a_limit_the_bundle_is_loaded_as_it_was_built():
    assert sizes() == ((8, 4096), ())


def test_what_is_named_is_taken():
    assert sizes(asked=(2, 100)) == ((2, 100), ())


def test_only_the_engines_own_files_are_its_weights():
    assert weights_bytes(manifest_of(files=FILES), ENGINE) == 10_000


def test_enough_memory_changes_nothing():
    assert sizes(memory=room(8 * 4096)) == ((8, 4096), ())


def test_the_slots_give_way_first():
    (slots, length), (remark,) = sizes(memory=room(3 * 4096 + 5))
    assert (slots, length) == (3, 4096)
    assert "max_batch is 3 instead of 8" in remark


def test_then_the_positions_give_way():
    (slots, length), remarks = sizes(memory=room(1000))
    assert (slots, length) == (1, 1000)
    assert "max_length is 1,000 instead of 4,096" in remarks[1]


def test_named_slots_are_kept_and_the_positions_give_way():
    assert sizes(memory=room(4000), asked=(4, None))[0] == (4, 1000)


def test_named_positions_are_kept_and_the_slots_give_way():
    assert sizes(memory=room(4000), asked=(None, 1500))[0] == (2, 1500)


@pytest.mark.parametrize(
    ("memory", "asked"),
    [
        (room(999), (1, 1000)),
        (room(63), (None, None)),
        (room(999), (None, 1000)),
        (room(8 * 63), (8, None)),
        (0, (None, None)),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(memory, asked):
    with pytest.raises(HostMemoryError, match=r"MB of weights .* MB of cache .* MB that this container leaves"):
        sizes(memory=memory, asked=asked)


@given(
    st.integers(1, 16),
    st.integers(1, 5000),
    st.integers(0, 100_000),
    st.tuples(st.none() | st.integers(1, 16), st.none() | st.integers(1, 5000)),
)
def test_what_is_loaded_always_fits_and_is_never_more_than_was_asked(batch, length, positions, asked):
    try:
        (slots, capacity), remarks = sizes(batch=batch, length=length, limit=5000, asked=asked, memory=room(positions))
    except HostMemoryError:
        return
    assert slots * capacity <= positions
    assert 1 <= slots <= (asked[0] or batch)
    assert 1 <= capacity <= (asked[1] or length)
    assert len(remarks) == (slots < (asked[0] or batch)) + (capacity < (asked[1] or length))


@pytest.mark.parametrize("asked", [(0, None), (None, 0)])
def test_sizes_below_one_are_misuse(asked):
    with pytest.raises(MisuseError, match="at least 1"):
        sizes(asked=asked)


def test_more_positions_than_the_engine_has_are_misuse():
    with pytest.raises(MisuseError, match="4,097"):
        sizes(asked=(None, 4097))


def test_a_size_that_is_no_number_is_damage():
    with pytest.raises(BundleCorruptError, match="max_batch"):
        sizes(batch="many")
