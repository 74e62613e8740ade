import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from toy_model import CHAT, byte_tokenizer, manifest_of

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import EngineError, MisuseError, PromptTooLongError
from piston.runtime.backends.engine import Engine
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions, open_session
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler
from piston.runtime.text.chat_template import ChatTemplate

pytest.importorskip("onnxruntime")

IDS = [17, 3, 90, 44, 5, 5, 128, 61, 22, 9, 77]
PROMPTS = [[5], [17, 3, 90], IDS, [44, 9], [130, 0, 1, 2, 3]]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # one thread, another shape: only the order of additions differs
OPTIONS = OrtOptions(threads=1)


@pytest.mark.parametrize(("asked", "given"), [(0, 3), (2, 2)])
def test_threads_that_are_left_open_are_the_cores_of_this_process(monkeypatch, asked, given):
    made = []
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda _, settings, **_given: made.append(settings))
    monkeypatch.setattr("piston.runtime.backends.session.num_cores", lambda: 3)
    open_session(Path("model.onnx"), OrtOptions(threads=asked))
    assert [settings.intra_op_num_threads for settings in made] == [given]


@pytest.fixture(scope="session")
def session(toy_llama):
    return open_session(toy_llama.path, OPTIONS)


@pytest.fixture
def make(session, toy_llama):
    def make(num_slots=1, capacity=48, chunk=512):
        return OrtEngine(session, KVCache(toy_llama.spec, num_slots, capacity), chunk)

    return make


@pytest.fixture
def engine(make):
    return make()


def prefilled(engine, ids=IDS, num_logits=1):
    slot = engine.cache.admit()
    return slot, engine.prefill(slot, ids, num_logits).copy()


def greedy(engine, prompts, max_tokens=8):
    requests = [Request(list(ids), RowSampler(SamplingParams(max_tokens=max_tokens), ids)) for ids in prompts]
    for _ in decode(engine, requests):
        pass
    return [request.output_ids for request in requests]


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)


def test_the_vocabulary_is_that_of_the_logits(engine, toy_llama):
    assert engine.vocab_size == toy_llama.vocab_size


def test_prefill_and_steps_give_the_logits_of_the_torch_module(engine, toy_llama):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected = toy_llama.make()(torch.tensor([[*IDS, 8, 9]]), use_cache=False).logits[0].numpy()
    slot, logits = prefilled(engine, num_logits=len(IDS))
    np.testing.assert_allclose(logits, expected[: len(IDS)], **CLOSE)
    for offset, token in enumerate((8, 9)):
        np.testing.assert_allclose(engine.step({slot: token})[slot], expected[len(IDS) + offset], **CLOSE)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_prefill_in_chunks_is_a_prefill_in_one(make, chunk):
    whole, cut = make(), make(chunk=chunk)
    slot, expected = prefilled(whole)
    np.testing.assert_allclose(prefilled(cut)[1], expected, **CLOSE)
    np.testing.assert_allclose(cut.step({slot: 7})[slot], whole.step({slot: 7})[slot], **CLOSE)


@pytest.mark.parametrize("chunk", [1, 2, 5, 512])
@pytest.mark.parametrize("num_logits", [2, 5, 7, len(IDS)])
def test_several_logits_are_those_of_the_last_positions_across_chunks(make, chunk, num_logits):
    _, every = prefilled(make(), num_logits=len(IDS))
    _, logits = prefilled(make(chunk=chunk), num_logits=num_logits)
    np.testing.assert_allclose(logits, every[-num_logits:], **CLOSE)


def test_a_prefill_without_logits_still_fills_the_cache(make):
    quiet, loud = make(), make()
    slot, logits = prefilled(quiet, num_logits=0)
    prefilled(loud)
    assert logits.shape == (0, quiet.vocab_size)
    np.testing.assert_allclose(quiet.step({slot: 7})[slot], loud.step({slot: 7})[slot], **CLOSE)


def test_a_closed_engine_says_so(engine):
    slot = engine.cache.admit()
    engine.close()
    with pytest.raises(MisuseError, match="closed"):
        engine.prefill(slot, IDS)
    with pytest.raises(MisuseError, match="closed"):
        engine.step({slot: 1})


def test_more_logits_than_tokens_are_refused(engine):
    with pytest.raises(MisuseError, match="12 positions were requested from a prefill of 11 tokens"):
        prefilled(engine, num_logits=12)


def test_fewer_logits_after_many_are_the_right_ones(engine):
    slot, many = prefilled(engine, num_logits=5)
    engine.cache.rewind(slot, 0)
    np.testing.assert_allclose(engine.prefill(slot, IDS), many[-1:], **CLOSE)


@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [0, 2], [1, 3], [3]])
def test_slots_stepped_together_are_each_as_alone(make, slots):
    engine = make(num_slots=4)
    for ids in PROMPTS[:4]:
        prefilled(engine, ids)
    logits = {slot: row.copy() for slot, row in engine.step({slot: 40 + slot for slot in slots}).items()}
    for slot in slots:
        alone = make()
        prefilled(alone, PROMPTS[slot])
        np.testing.assert_allclose(logits[slot], alone.step({0: 40 + slot})[0], **CLOSE)


def test_rows_that_idle_between_stepped_rows_are_not_disturbed(make):
    engine = make(num_slots=3)
    for ids in PROMPTS[:3]:
        prefilled(engine, ids)
    for token in (4, 5, 6):
        engine.step({0: token, 2: token})
    alone = make()
    prefilled(alone, PROMPTS[1])
    np.testing.assert_allclose(engine.step({1: 9})[1], alone.step({0: 9})[0], **CLOSE)


def test_a_full_row_that_idles_is_not_disturbed(make):
    engine = make(num_slots=3, capacity=len(IDS))
    for ids in ([5], IDS, [6]):
        prefilled(engine, ids)
    before = [array[1].copy() for array in engine.cache.arrays]
    engine.step({0: 4, 2: 4})
    assert all(np.array_equal(array[1], old) for array, old in zip(engine.cache.arrays, before, strict=True))


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_each_row_of_a_ragged_batch_is_the_row_alone(make, num_slots):
    assert greedy(make(num_slots=num_slots), PROMPTS) == [greedy(make(), [ids])[0] for ids in PROMPTS]


def test_a_rewound_slot_goes_on_as_a_fresh_one(make):
    used, fresh = make(), make()
    slot, _ = prefilled(used)
    for token in (1, 2, 3):
        used.step({slot: token})
    used.cache.rewind(slot, 4)
    prefilled(fresh, IDS[:4])
    np.testing.assert_allclose(used.prefill(slot, [99, 98]), fresh.prefill(slot, [99, 98]), **CLOSE)


def test_a_released_slot_is_reused_without_trace(make):
    used = make()
    slot, _ = prefilled(used)
    used.cache.release(slot)
    np.testing.assert_allclose(prefilled(used, PROMPTS[1])[1], prefilled(make(), PROMPTS[1])[1], **CLOSE)


@pytest.mark.parametrize("token", [-1, 131, 10**9])
def test_a_token_outside_the_vocabulary_is_refused_and_changes_nothing(engine, token):
    slot, _ = prefilled(engine)
    for use in (lambda: engine.prefill(slot, [3, token]), lambda: engine.step({slot: token})):
        with pytest.raises(MisuseError, match=rf"{token}.*the model knows 0 to 130"):
            use()
    assert engine.cache.lengths[slot] == len(IDS)


def test_a_prefill_beyond_the_capacity_is_refused_with_both_numbers(make):
    engine = make(capacity=10)
    with pytest.raises(PromptTooLongError, match=r"11 positions.*10"):
        prefilled(engine)
    assert engine.cache.lengths[0] == 0


def test_a_step_beyond_the_capacity_is_refused(make):
    engine = make(capacity=len(IDS))
    slot, _ = prefilled(engine)
    with pytest.raises(PromptTooLongError):
        engine.step({slot: 1})


def test_the_cache_never_moves(make):
    engine = make(num_slots=2, capacity=64)
    addresses = [engine.cache.address(index, 0) for index in range(len(engine.cache.arrays))]
    slot, _ = prefilled(engine)
    for token in range(50):
        engine.step({slot: token})
    assert [array.ctypes.data for array in engine.cache.arrays] == addresses


def test_a_step_is_bound_once_and_then_reused(make):
    engine = make(capacity=64)
    slot, _ = prefilled(engine)
    engine.step({slot: 0})
    bindings = dict(engine._decode_bindings)
    for token in range(50):
        engine.step({slot: token})
    assert engine._decode_bindings == bindings


def test_logits_of_a_step_lie_in_the_same_memory_each_time(make):
    engine = make(capacity=64)
    slot, _ = prefilled(engine)
    assert len({engine.step({slot: token})[slot].ctypes.data for token in range(20)}) == 1


def test_a_step_allocates_far_less_than_the_cache_in_python(make):
    """What numpy and Python allocate; ONNX Runtime's own memory is the next test's."""
    engine = make(num_slots=2, capacity=64)
    slot, _ = prefilled(engine)
    engine.step({slot: 0})
    tracemalloc.start()
    try:
        for token in range(20):
            engine.step({slot: token})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < engine.cache.arrays[0].nbytes / 2


PEAK = """
import sys
from pathlib import Path
from piston.core.bundle.interface import CacheSpec
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

spec = CacheSpec.of(num_layers=2, num_kv_heads=2, head_dim=16, dtype="float32")
engine = OrtEngine.open(Path(sys.argv[1]), spec, num_slots=1, capacity=400_000, options=OrtOptions(threads=1))
for array in engine.cache.arrays:
    array.fill(0.5)  # commit the pages, so that growth below is not the cache's own
slot = engine.cache.admit()
engine.prefill(slot, [3, 4, 5])
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
for token in range(5):
    engine.step({slot: token})
print(kilobytes("VmHWM") - before, engine.cache.arrays[0].nbytes // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_step_never_copies_a_cache_array(toy_llama):
    """The peak of the whole process over five steps grows by less than one array: the scatter is in place."""
    words = [sys.executable, "-c", PEAK, str(toy_llama.path)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    grown, array = map(int, out.split())
    assert grown < array


def test_closing_lets_go_of_the_session(engine):
    slot, _ = prefilled(engine)
    engine.step({slot: 1})
    engine.close()
    assert engine._session is None
    assert engine._decode_bindings == {}


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x09"])
def test_a_file_that_is_no_graph_is_an_engine_error(tmp_path, toy_llama, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"ONNX Runtime failed while loading .*model\.onnx"):
        OrtEngine.open(tmp_path / "model.onnx", toy_llama.spec, num_slots=1, capacity=8)


def test_a_missing_file_is_an_engine_error(tmp_path, toy_llama):
    with pytest.raises(EngineError, match="nowhere"):
        OrtEngine.open(tmp_path / "nowhere.onnx", toy_llama.spec, num_slots=1, capacity=8)


def test_a_graph_that_is_no_decoder_is_an_engine_error(tmp_path, toy_llama):
    onnx = pytest.importorskip("onnx")
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y) { y = Neg(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="logits"):
        OrtEngine.open(tmp_path / "model.onnx", toy_llama.spec, num_slots=1, capacity=8)


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 1}, {"num_layers": 3}, {"num_kv_heads": 4}, {"head_dim": 8}, {"dtype": "int8"}],
)
def test_a_manifest_of_another_cache_is_an_engine_error(toy_llama, change):
    fields = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "dtype": "float32"} | change
    with pytest.raises(EngineError, match=r"has 4 states|its manifest states"):  # at once, not at the first token
        OrtEngine.open(toy_llama.path, CacheSpec.of(**fields), num_slots=1, capacity=8)


def test_generation_on_a_real_graph_streams_what_it_generates(make):
    model = LanguageModel(manifest_of(), make(num_slots=2), byte_tokenizer(), ChatTemplate(CHAT, special_tokens={}))
    sampling = SamplingParams(max_tokens=12, ignore_eos=True)
    completion = model.generate([3, 40, 50], sampling)
    assert "".join(model.stream([3, 40, 50], sampling)) == completion.text
    assert len(completion.token_ids) == 12


def test_a_conversation_on_a_real_graph_gives_the_tokens_of_a_fresh_prompt(make):
    sampling = SamplingParams(max_tokens=5)
    ids = [[3, 40], [50, 60, 4], [70, 5]]
    cached, slot, held = make(), 0, []
    cached.cache.admit()
    for turn in ids:
        prompt = held + turn
        request = Request(prompt, RowSampler(sampling, prompt), slot=slot, keep_slot=True)
        for _ in decode(cached, [request]):
            pass
        assert request.output_ids == greedy(make(), [prompt], 5)[0]
        held = prompt + request.output_ids


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_threads_that_no_machine_can_use_are_misuse(threads):
    with pytest.raises(MisuseError, match=f"threads is {threads}; it must be from 0"):
        OrtOptions(threads=threads)


@pytest.mark.parametrize("graph", [None, b"a graph whose weights are elsewhere"])
def test_a_directory_whose_name_is_not_utf8_is_misuse(graph):
    with pytest.raises(MisuseError, match="udcff' is not UTF-8, and ONNX Runtime takes no other; move the bundle"):
        open_session(Path("a", "bad\udcff", "model.onnx"), OPTIONS, graph)


def test_bindings_are_kept_for_the_ranges_of_rows_that_were_stepped_last(make, monkeypatch):
    monkeypatch.setattr("piston.runtime.backends.ort_cpu.MAX_BINDINGS", 3)
    engine = make(num_slots=4)
    for ids in PROMPTS[:4]:
        prefilled(engine, ids)
    ranges = [(0, 1), (1, 2), (0, 1), (2, 3), (3, 4), (0, 4)]
    for low, high in ranges:
        engine.step(dict.fromkeys(range(low, high), 5))
    assert [key[:2] for key in engine._decode_bindings] == [(2, 3), (3, 4), (0, 4)]


def test_a_copied_prefix_gives_the_logits_of_the_torch_module(make, toy_llama):
    torch = pytest.importorskip("torch")
    engine = make(num_slots=2)
    source, goal = engine.cache.admit(), engine.cache.admit()
    engine.prefill(source, [*IDS, 7, 7, 7])
    engine.cache.copy(source, goal, len(IDS))
    logits = engine.prefill(goal, [8, 9], num_logits=2)
    with torch.no_grad():
        expected = toy_llama.make()(torch.tensor([[*IDS, 8, 9]]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(logits, expected[-2:], atol=1e-4)
