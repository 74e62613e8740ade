"""The engine over ONNX Runtime's CUDA provider, where onnxruntime-gpu is installed."""

import numpy as np
import pytest

from piston.core.errors import Error
from piston.runtime import load
from piston.runtime.backends.environment import Machine
from piston.runtime.backends.ort_cuda import PROVIDER


@pytest.fixture(scope="module")
def bundle(device, toys, tmp_path_factory):
    try:
        Machine().require_provider(PROVIDER)
    except Error as problem:
        pytest.skip(str(problem))
    pytest.importorskip("torch")
    from piston.engines import build

    out = tmp_path_factory.mktemp("ort-cuda") / "bundle"
    build(toys.model_dir(), out, ["ort-cpu", "ort-cuda"], max_batch=3, max_length=64)
    return out


def test_its_answers_are_those_of_the_cpu(bundle, finding):
    found = 0.0
    with load(bundle, target="ort-cuda") as ours, load(bundle, target="ort-cpu") as theirs:
        for length in (1, 7, 40):
            slot, other = ours.engine.cache.admit(), theirs.engine.cache.admit()
            ids = np.random.default_rng(length).integers(0, 300, length).tolist()
            for mine, its in (
                (ours.engine.prefill(slot, ids)[0], theirs.engine.prefill(other, ids)[0]),
                (ours.engine.step({slot: 5})[slot], theirs.engine.step({other: 5})[other]),
            ):
                found = max(found, float(np.abs(mine - its).max() / np.abs(its).max()))
    finding("o", "ort-cuda, prefills and steps", f"logits {found:.1e} apart")
    assert found < 0.02


def test_rows_that_are_moved_when_others_end_answer_as_before(bundle, finding):
    found = 0.0
    with load(bundle, target="ort-cuda") as ours, load(bundle, target="ort-cpu") as theirs:
        for engine in (ours.engine, theirs.engine):
            for length in (2, 40, 9):
                engine.prefill(engine.cache.admit(), np.random.default_rng(length).integers(0, 300, length).tolist())
        for tokens in ({0: 4, 1: 5, 2: 6}, {1: 5, 2: 6}, {2: 6}, {1: 7}, {0: 4, 2: 6}):
            mine, its = ours.engine.step(tokens), theirs.engine.step(tokens)
            found = max(found, *(float(np.abs(mine[slot] - its[slot]).max() / np.abs(its[slot]).max()) for slot in its))
        finding("o", "ort-cuda, rows moved between steps", f"logits {found:.1e} apart")
        assert ours.engine.capture_problem is None
    assert found < 0.02


def test_it_is_taken_before_the_cpu(bundle):
    with load(bundle) as model:
        assert type(model.engine).__name__ == "OrtCudaEngine"
