import gc

import numpy as np
import pytest
from fake_cuda import cudaError_t

from piston.core.errors import DeviceMemoryError, EngineError, MisuseError, PromptTooLongError
from piston.runtime.backends.device_decoding import DeviceDecoding, DeviceRow
from piston.runtime.backends.engine import Engine
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions, open_session
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

IDS = [17, 3, 90, 44, 5, 5, 128, 61, 22, 9, 77]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
GREEDY = SamplingParams()
WARM = SamplingParams(temperature=0.9, top_k=20, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def reference(toy_llama):
    """The same graph through the engine of ONNX Runtime."""
    session = open_session(toy_llama.path, OrtOptions(threads=1))
    return lambda num_slots=4: OrtEngine(session, KVCache(toy_llama.spec, num_slots, 48))


def prefilled(engine, *lengths):
    """Admit a slot for each length, filled with as many ids; the greedy next token of each."""
    tokens = {}
    for length in lengths:
        slot = engine.cache.admit()
        tokens[slot] = int(engine.prefill(slot, IDS[:length])[0].argmax())
    return tokens


def rows_of(tokens, sampling=GREEDY, count=20):
    samplers = {slot: RowSampler(sampling, [], index=slot) for slot in tokens}
    return {
        slot: DeviceRow(token_id=token, sampling=sampling, uniforms=samplers[slot].uniforms(count))
        for slot, token in tokens.items()
    }


def stepped(engine, tokens, num_steps, sampling=GREEDY):
    """What the host picks, step by step."""
    samplers, found = {slot: RowSampler(sampling, [], index=slot) for slot in tokens}, []
    for _ in range(num_steps):
        tokens = {slot: samplers[slot].pick(row).token_id for slot, row in engine.step(tokens).items()}
        found.append(tokens)
    return found


def test_it_is_an_engine_that_decodes_on_the_device(rig):
    engine = rig.engine()
    assert isinstance(engine, Engine)
    assert isinstance(engine, DeviceDecoding)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16])
@pytest.mark.parametrize("num_logits", [0, 1, 2, 7, len(IDS)])
def test_prefill_in_chunks_gives_the_logits_of_onnx_runtime(rig, reference, chunk, num_logits):
    engine, other = rig.engine(chunk=chunk, max_logits=min(chunk, 4)), reference()
    slot, same = engine.cache.admit(), other.cache.admit()
    np.testing.assert_allclose(engine.prefill(slot, IDS, num_logits), other.prefill(same, IDS, num_logits), **CLOSE)
    np.testing.assert_allclose(engine.step({slot: 7})[slot], other.step({same: 7})[same], **CLOSE)


def test_rows_of_any_slots_step_together_as_in_onnx_runtime(rig, reference):
    engine, other = rig.engine(), reference()
    assert prefilled(engine, 3, 11, 1, 6).keys() == prefilled(other, 3, 11, 1, 6).keys()
    for slots in ([0, 1, 2, 3], [0, 1, 2, 3], [1, 3], [1, 3], [2], [0, 1, 2, 3], [3], [3], [3], [0, 2]):
        tokens = {slot: 10 * slot + 5 for slot in slots}
        ours, theirs = engine.step(tokens), other.step(tokens)
        assert ours.keys() == theirs.keys()
        for slot in slots:
            np.testing.assert_allclose(ours[slot], theirs[slot], **CLOSE)


def test_a_slot_is_prefilled_in_its_own_part_of_the_cache(rig):
    engine = rig.engine()
    prefilled(engine, 2, 2, 2)
    bound = {
        arguments[2]
        for name, arguments in rig.module.calls
        if name == "set_tensor_address" and arguments[:2] == (0, "past.0.key")
    }
    assert len(bound) == 3
    assert {b - a for a, b in zip(sorted(bound), sorted(bound)[1:], strict=False)} == {48 * 2 * 16 * 4}


def test_idle_full_rows_are_left_alone(rig, reference):
    engine, other = rig.engine(capacity=12), reference()
    for tested in (engine, other):
        prefilled(tested, 3, 11, 3)
        tested.step({1: 5})
    for _ in range(3):
        ours, theirs = engine.step({0: 5, 2: 6}), other.step({0: 5, 2: 6})
        np.testing.assert_allclose(ours[0], theirs[0], **CLOSE)
        np.testing.assert_allclose(ours[2], theirs[2], **CLOSE)
    for tested in (engine, other):
        tested.cache.rewind(1, 11)
    np.testing.assert_allclose(engine.step({1: 9})[1], other.step({1: 9})[1], **CLOSE)


def test_memory_is_taken_when_the_engine_is_made_and_not_while_it_decodes(rig):
    engine = rig.engine()
    tokens = prefilled(engine, 3, 5)
    before = rig.runtime.names().count("cudaMalloc"), rig.runtime.names().count("cudaMallocHost")
    stepped(engine, tokens, 4)
    list(engine.run(rows_of(tokens), 4))
    assert (rig.runtime.names().count("cudaMalloc"), rig.runtime.names().count("cudaMallocHost")) == before


def test_a_step_is_captured_at_its_second_run_and_launched_from_then_on(rig):
    engine = rig.engine()
    tokens = prefilled(engine, 3, 5)
    counts = []
    for _ in range(4):
        tokens = stepped(engine, tokens, 1)[0]
        names = [name for name, _ in rig.module.calls]
        counts.append((names.count("execute_async_v3"), rig.runtime.names().count("cudaGraphLaunch")))
    executed = [executed - counts[0][0] for executed, _ in counts]
    assert executed == [0, 1, 1, 1]
    assert [launched for _, launched in counts] == [0, 1, 2, 3]


def test_each_number_of_rows_is_captured_once_whatever_rows_are_stepped(rig):
    engine = rig.engine()
    prefilled(engine, 3, 5, 2, 2)
    few = ([0, 1], [0, 1], [0], [0], [1], [2, 3], [0, 2], [3], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3], [0, 3], [2])
    for slots in (*few, *few):
        engine.step(dict.fromkeys(slots, 4))
    assert rig.runtime.names().count("cudaGraphInstantiate") == len(rig.runtime.executables) == 3  # of 1, 2 and 4 rows


def test_a_step_that_cannot_be_captured_goes_on_with_a_warning_and_the_reason(rig, reference):
    rig.module.is_capturable = False
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 3)
    prefilled(other, 3)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs, which is slower: TensorRT-RTX reports"):
        found = stepped(engine, tokens, 5)
    assert found == stepped(other, tokens, 5)
    assert "cannot be captured" in engine.capture_problem


@pytest.mark.parametrize("failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_failed_capture_leaves_a_stream_that_works(rig, reference, failing):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 3)
    prefilled(other, 3)
    rig.runtime.fail[failing] = cudaError_t.cudaErrorStreamCaptureUnsupported
    with pytest.warns(RuntimeWarning, match=failing):
        found = stepped(engine, tokens, 4)
    assert found == stepped(other, tokens, 4)


@pytest.mark.parametrize("sampling", [GREEDY, WARM, SamplingParams(temperature=2.0, top_k=64, seed=9)])
@pytest.mark.parametrize("lengths", [(4,), (3, 11, 1), (6, 2, 9, 9)])
def test_a_run_on_the_device_chooses_what_the_host_picks_from_onnx_runtime(rig, reference, sampling, lengths):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, *lengths)
    assert tokens == prefilled(other, *lengths)
    assert list(engine.run(rows_of(tokens, sampling), 20)) == stepped(other, tokens, 20, sampling)
    np.testing.assert_array_equal(engine.cache.lengths, other.cache.lengths)


def test_in_half_precision_texts_part_only_where_two_tokens_are_nearly_as_likely(rig, reference):
    engine, other = rig.engine(dtype="float16"), reference()
    tokens = prefilled(engine, 4, 11, 1)
    assert tokens == prefilled(other, 4, 11, 1)
    for chosen in engine.run(rows_of(tokens), 12):
        for slot, row in other.step(tokens).items():
            assert row.max() - row[chosen[slot]] < 0.02
        tokens = chosen


def test_rows_of_different_sampling_run_together(rig, reference):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 4, 4)
    prefilled(other, 4, 4)
    rows = rows_of({0: tokens[0]}) | rows_of({1: tokens[1]}, WARM)
    ours = list(engine.run(rows, 10))
    assert [step[0] for step in ours] == [step[0] for step in stepped(other, {0: tokens[0]}, 10)]
    assert [step[1] for step in ours] == [step[1] for step in stepped(other, {1: tokens[1]}, 10, WARM)]


def test_the_host_waits_for_a_token_while_later_steps_are_in_the_stream(rig):
    engine = rig.engine()
    run = engine.run(rows_of(prefilled(engine, 4)), 20)
    next(run)
    stream = next(iter(rig.runtime.streams.values()))
    assert len(stream.queue) > 8


def test_logits_stay_on_the_device_during_a_run(rig):
    engine = rig.engine()
    tokens = prefilled(engine, 4)
    before = len(rig.runtime.calls)
    list(engine.run(rows_of(tokens), 8))
    copied = [args[2] for name, args in rig.runtime.calls[before:] if name == "cudaMemcpyAsync" and args[3] == 2]
    assert copied == [8] * 8


def test_a_run_that_is_left_early_holds_what_was_yielded_and_no_more(rig, reference):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 4)
    prefilled(other, 4)
    run = engine.run(rows_of(tokens), 20)
    taken = [next(run) for _ in range(3)]
    run.close()
    expected = stepped(other, tokens, 6)
    assert taken == expected[:3]
    assert engine.cache.lengths[0] == 7
    assert stepped(engine, taken[-1], 3) == expected[3:]


def test_a_run_ends_when_the_engine_is_used_between_two_tokens_and_nothing_is_lost(rig, reference):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 4)
    prefilled(other, 4)
    run = engine.run(rows_of(tokens), 20)
    first = next(run)
    prefilled(engine, 9)
    assert list(run) == []
    assert [first, *engine.run(rows_of(first), 5)] == stepped(other, tokens, 6)


def test_a_full_row_between_them_does_not_keep_rows_from_running_together(rig, reference):
    engine, other = rig.engine(capacity=12), reference()
    for tested in (engine, other):
        tokens = prefilled(tested, 3, 11, 3)
        tested.step({1: tokens[1]})
    chosen = list(engine.run(rows_of({0: 5, 2: 6}), 4))
    assert chosen == stepped(other, {0: 5, 2: 6}, 4)
    assert engine.cache.lengths.tolist()[:3] == [7, 12, 7]
    for tested in (engine, other):
        tested.cache.rewind(1, 11)
    np.testing.assert_allclose(engine.step({1: 9})[1], other.step({1: 9})[1], **CLOSE)


def test_rows_that_come_go_and_idle_are_each_as_in_onnx_runtime(rig, reference):
    engine, other, rng = rig.engine(num_slots=4), reference(4), np.random.default_rng(7)
    tokens = {}
    for _ in range(40):
        if tokens and rng.random() < 0.3:
            slot = int(rng.choice(sorted(tokens)))
            del tokens[slot]
            for tested in (engine, other):
                tested.cache.release(slot)
        if engine.cache.num_free and rng.random() < 0.5:
            tokens |= prefilled(engine, length := int(rng.integers(1, 12)))
            prefilled(other, length)
        stepping = {slot: tokens[slot] for slot in tokens if rng.random() < 0.6 and engine.cache.lengths[slot] < 48}
        ours, theirs = engine.step(stepping), other.step(stepping)
        assert ours.keys() == theirs.keys() == stepping.keys()
        for slot in stepping:
            np.testing.assert_allclose(ours[slot], theirs[slot], **CLOSE)
            tokens[slot] = int(theirs[slot].argmax())


def test_a_run_beyond_the_capacity_is_refused_before_it_begins(rig):
    engine = rig.engine(capacity=12)
    tokens = prefilled(engine, 9)
    with pytest.raises(PromptTooLongError, match="13 positions"):
        next(engine.run(rows_of(tokens), 4))


def test_a_run_fills_a_row_to_its_last_position(rig, reference):
    engine, other = rig.engine(), reference()
    tokens = prefilled(engine, 8)
    prefilled(other, 8)
    assert list(engine.run(rows_of(tokens, count=40), 40)) == stepped(other, tokens, 40)


@pytest.mark.parametrize(
    ("sampling", "can"),
    [
        (GREEDY, True),
        (WARM, True),
        (SamplingParams(temperature=1.0), False),
        (SamplingParams(temperature=1.0, top_k=65), False),
        (SamplingParams(temperature=1.0, top_k=5, min_p=0.1), False),
        (SamplingParams(temperature=1.0, top_k=5, typical_p=0.5), False),
    ],
)
def test_the_device_chooses_by_what_its_graph_has(rig, sampling, can):
    assert rig.engine().can_choose(sampling) is can


def test_the_decode_loop_gives_the_same_texts_as_over_onnx_runtime(rig, reference):
    prompts = [[5], [17, 3, 90], IDS, [44, 9], [130, 0, 1, 2, 3], [8]]
    found = []
    for engine in (rig.engine(), reference()):
        sampling = [
            SamplingParams(max_tokens=4 + 3 * index, temperature=index % 2, top_k=9, seed=index) for index in range(6)
        ]
        requests = [
            Request(list(ids), RowSampler(options, ids)) for ids, options in zip(prompts, sampling, strict=True)
        ]
        for _ in decode(engine, requests):
            pass
        found.append([request.output_ids for request in requests])
    assert found[0] == found[1]


def test_sizes_beyond_the_plan_are_refused_with_all_numbers(rig):
    with pytest.raises(MisuseError, match="max_batch is 5 and max_length 48, but the engine was built for 4 and 48"):
        rig.engine(num_slots=5)
    assert rig.runtime.leaks() == 0


@pytest.mark.parametrize("share", [0.01, 0.4, 0.7, 0.9, 0.95, 0.99, 0.999])
def test_a_device_that_is_too_small_is_told_with_both_numbers_and_nothing_is_kept(rig, share):
    engine = rig.engine()
    rig.runtime.total = int(share * rig.runtime.used())
    engine.close()
    with pytest.raises(DeviceMemoryError, match=r"needs [\d.]+ MB of device memory; .* MB [\d.]+ MB are free"):
        rig.engine()
    gc.collect()
    assert rig.runtime.leaks() == 0
    assert rig.module.alive == []


@pytest.mark.parametrize(
    ("refusing", "doing"),
    [
        ("create_execution_context", "creating a context of toy.plan"),
        ("set_optimization_profile_async", "selecting profile 0"),
        ("deserialize_cuda_engine", "loading toy.plan"),
    ],
)
def test_what_tensorrt_refuses_is_told_in_its_words_and_nothing_is_kept(rig, refusing, doing):
    rig.module.refuse[refusing] = "[foo.cpp::bar]  no\n such thing"
    with pytest.raises(EngineError, match=rf"TensorRT failed while {doing}: \[foo.cpp::bar\] no such thing\."):
        rig.engine()
    gc.collect()
    assert rig.runtime.leaks() == 0
    assert rig.module.alive == []


def test_a_step_that_tensorrt_refuses_is_an_engine_error(rig):
    engine = rig.engine()
    tokens = prefilled(engine, 3)
    rig.module.refuse["execute_async_v3"] = "enqueue failed"
    with pytest.raises(EngineError, match="TensorRT failed while running a step: enqueue failed"):
        engine.step(tokens)


def test_a_plan_that_does_not_write_its_cache_in_place_is_refused(rig):
    rig.module.refuse["get_aliased_input_tensor"] = ""
    with pytest.raises(EngineError, match=r"writes present\.0\.key in place of nothing, not of past\.0\.key"):
        rig.engine()


def test_closing_frees_everything_in_the_right_order_and_twice_is_no_harm(rig):
    engine = rig.engine()
    tokens = prefilled(engine, 3, 4)
    stepped(engine, tokens, 3)
    run = engine.run(rows_of(tokens), 9)
    next(run)
    engine.close()
    engine.close()
    gc.collect()
    assert rig.module.alive == []
    assert rig.runtime.leaks() == 0
    names = rig.runtime.names()
    assert names.index("cudaGraphExecDestroy") < names.index("cudaFree")
    assert names[-1] == "cudaStreamDestroy"
    assert list(run) == []


@pytest.mark.parametrize("use", [lambda e: e.prefill(0, IDS), lambda e: e.step({0: 1}), lambda e: next(e.run({}, 1))])
def test_a_closed_engine_says_so(rig, use):
    engine = rig.engine()
    engine.close()
    with pytest.raises(MisuseError, match="closed"):
        use(engine)


def test_an_engine_that_is_forgotten_frees_its_memory(plan_bytes, toy_llama):
    from fake_cuda import FakeCudaRuntime
    from fake_tensorrt import FakeTensorRT

    from piston.runtime.backends.cuda_driver import Cuda
    from piston.runtime.backends.tensorrt.engine import TensorRTEngine
    from piston.runtime.backends.tensorrt.plan import Plan

    runtime = FakeCudaRuntime()
    data, _ = plan_bytes(max_batch=4, max_length=48, chunk=16, max_logits=4)
    plan = Plan(FakeTensorRT(runtime), data, "toy.plan", None)
    TensorRTEngine.open(plan, toy_llama.spec, cuda=Cuda.of(runtime), num_slots=1, capacity=48, max_top_k=64)
    gc.collect()
    assert runtime.leaks() == 0


def test_after_a_fault_of_the_device_closing_still_drops_everything(rig):
    engine = rig.engine()
    prefilled(engine, 3)
    rig.runtime.fail["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    engine.close()
    gc.collect()
    assert rig.module.alive == []
    assert rig.runtime.leaks() == 0


@pytest.mark.parametrize("ids", [[131], [-1], [5, 200]])
def test_ids_outside_the_vocabulary_never_reach_the_device(rig, ids):
    engine = rig.engine()
    with pytest.raises(MisuseError, match="the model knows 0 to 130"):
        engine.prefill(engine.cache.admit(), ids)
