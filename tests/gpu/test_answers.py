"""Questions a, b and e: does an engine on the GPU answer as the canonical graph does on the CPU?"""

import warnings

import numpy as np
import pytest

from piston.runtime import SamplingParams, load
from piston.runtime.backends.registry import BACKENDS

BOUND = {"fp16": 0.02, "bf16": 0.15}  # of the largest logit
POSITIONS = (1, 7, 40, 95)


@pytest.fixture(params=["fp16", "bf16"])
def pair(request, bundle_of, target):
    """The same model on the GPU and on the CPU, and how far their logits may be apart."""
    bundle = bundle_of(dtype=request.param)
    with load(bundle, target=target) as ours, load(bundle, target="ort-cpu") as theirs:
        yield ours.engine, theirs.engine, request.param


def apart(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def ids_of(count):
    return np.random.default_rng(count).integers(0, 300, count).tolist()


@pytest.mark.parametrize("length", POSITIONS)
def test_a_and_b_lengths_and_lower_right_mean_what_they_mean_to_eager(pair, finding, length):
    ours, theirs, dtype = pair
    rows = []
    for engine in (ours, theirs):
        slot = engine.cache.admit()
        rows.append([engine.prefill(slot, ids_of(length))[0].copy(), engine.step({slot: 5})[slot].copy()])
    prefill, step = (apart(*each) for each in zip(*rows, strict=True))
    finding("a", f"{dtype} prefill of {length}", f"logits {prefill:.1e} apart")
    finding("b", f"{dtype} decode at position {length}", f"logits {step:.1e} apart")
    assert max(prefill, step) < BOUND[dtype]


def test_b_a_prefill_in_pieces_is_one_in_one(pair, finding):
    ours, theirs, dtype = pair
    slot, other, ids = ours.cache.admit(), theirs.cache.admit(), ids_of(60)
    for start in range(0, 60, 17):
        logits = ours.prefill(slot, ids[start : start + 17])
    found = apart(logits[0], theirs.prefill(other, ids)[0])
    finding("b", f"{dtype} prefill in four pieces", f"logits {found:.1e} apart")
    assert found < BOUND[dtype]


def test_b_rows_of_different_lengths_do_not_see_one_another(pair, finding):
    ours, theirs, dtype = pair
    for engine in (ours, theirs):
        for length in (2, 50, 9):
            engine.prefill(engine.cache.admit(), ids_of(length))
    for _ in range(3):
        mine, its = ours.step({0: 4, 1: 5, 2: 6}), theirs.step({0: 4, 1: 5, 2: 6})
    found = max(apart(mine[slot], its[slot]) for slot in its)
    finding("b", f"{dtype} ragged batch of three", f"logits {found:.1e} apart")
    assert found < BOUND[dtype]


def test_b_rows_that_are_moved_when_others_end_answer_as_before(pair, finding):
    ours, theirs, dtype = pair
    for engine in (ours, theirs):
        for length in (2, 50, 9, 30):
            engine.prefill(engine.cache.admit(), ids_of(length))
        engine.step({0: 4, 1: 5, 2: 6, 3: 7})
        engine.cache.release(0)
    found = 0.0
    for tokens in ({1: 5, 2: 6, 3: 7}, {2: 6, 3: 7}, {3: 7}, {1: 8}, {1: 5, 3: 7}):
        mine, its = ours.step(tokens), theirs.step(tokens)
        found = max(found, *(apart(mine[slot], its[slot]) for slot in its))
    finding("b", f"{dtype} rows moved between steps", f"logits {found:.1e} apart")
    assert found < BOUND[dtype]
    assert ours.capture_problem is None


def test_e_steps_are_captured_and_the_graph_says_what_single_launches_say(pair, finding):
    ours, _, dtype = pair
    slot = ours.cache.admit()
    ours.prefill(slot, ids_of(9))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        first = ours.step({slot: 5})[slot].copy()
        for _ in range(3):  # captured at the second
            ours.cache.rewind(slot, 9)
            again = ours.step({slot: 5})[slot].copy()
    finding("e", f"{dtype} capture of execute_async_v3", ours.capture_problem or "works")
    np.testing.assert_allclose(again, first, rtol=1e-3, atol=1e-3)
    assert ours.capture_problem is None


def test_e_cache_outputs_are_aliased_to_their_inputs(pair, finding):
    finding("e", f"{pair[2]} get_aliased_input_tensor", "names past.X for present.X")  # or the engine had not opened


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(max_tokens=30), SamplingParams(max_tokens=30, temperature=0.8, top_k=40, top_p=0.9, seed=1)],
)
def test_e_tokens_chosen_on_the_device_are_those_the_host_picks(bundle_of, target, finding, sampling):
    bundle = bundle_of()
    kind = "greedy" if sampling.is_greedy else "sampled"
    with load(bundle, target=target) as model:
        assert "tensorrt" in target
        on_device = model.generate([[5, 6, 7], [8]], sampling)
        model.engine.can_choose = lambda _: False
        on_host = model.generate([[5, 6, 7], [8]], sampling)
    same = sum(
        a == b for x, y in zip(on_device, on_host, strict=True) for a, b in zip(x.token_ids, y.token_ids, strict=False)
    )
    finding(
        "e", f"{kind} tokens chosen on the device", f"{same} of {sum(len(x.token_ids) for x in on_host)} as on the host"
    )
    assert [item.token_ids for item in on_device] == [item.token_ids for item in on_host]


def test_the_gpu_engine_is_what_load_takes(bundle_of, target):
    with load(bundle_of()) as model:
        assert type(model.engine).__name__ == "TensorRTEngine"
    assert target.partition(":")[0] in BACKENDS
