import contextlib
import gc
import inspect
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FakeCudaRuntime
from machines import gpu, machine_with
from toy_model import CACHE, write_bundle

from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import DeviceMemoryError, EngineError, MissingExtraError, MisuseError
from piston.runtime.backends import ort_cuda as ort_cuda_engine
from piston.runtime.backends.cuda_driver import Cuda
from piston.runtime.backends.engine import Engine
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.ort_cuda import OrtCudaEngine, check_provider
from piston.runtime.backends.registry import Sizes, open_engine, select_engine
from piston.runtime.backends.session import OrtOptions, open_session
from piston.runtime.bundle import Bundle
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

pytest.importorskip("onnxruntime")

IDS = [17, 3, 90, 44, 5, 5, 128, 61, 22, 9, 77]


@pytest.fixture(scope="module")
def lowered(toy_llama, tmp_path_factory):
    """The toy as the builder lowers it, but in float32, so that answers can be held against the CPU's."""
    import onnx_ir as ir

    from piston.engines.lowering.ort_cuda import lower_for_ort_cuda

    model = ir.load(toy_llama.path)
    lower_for_ort_cuda(model, 64, "float32")
    path = tmp_path_factory.mktemp("lowered") / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return path


@pytest.fixture(params=["captured", "one by one"])
def rig(request, toy_llama, lowered):
    return make_rig(toy_llama, lowered, captured=request.param == "captured")


@pytest.fixture
def captured(toy_llama, lowered):
    return make_rig(toy_llama, lowered, captured=True)


def make_rig(toy_llama, lowered, *, captured):
    from fake_cuda_session import FakeCudaSession

    runtime = FakeCudaRuntime()
    found = SimpleNamespace(runtime=runtime, session=None)

    def engine(num_slots=3, capacity=40):
        cuda = Cuda.of(runtime)
        stream = cuda.stream()
        found.session = FakeCudaSession(lowered, runtime, stream)
        problem = None if captured else "a test's"
        sizes = {"num_slots": num_slots, "capacity": capacity, "capture_problem": problem}
        return OrtCudaEngine(found.session, toy_llama.spec, cuda=cuda, stream=stream, **sizes)

    found.engine = engine
    return found


def test_it_is_an_engine(rig):
    assert isinstance(rig.engine(), Engine)


def test_texts_are_those_of_the_cpu(rig, toy_llama):
    other = OrtEngine(open_session(toy_llama.path, OrtOptions(threads=1)), KVCache(toy_llama.spec, 3, 40))
    found = []
    for engine in (rig.engine(), other):
        requests = [
            Request(IDS[:count], RowSampler(SamplingParams(max_tokens=9), IDS[:count])) for count in (3, 11, 1, 6, 2)
        ]
        for _ in decode(engine, requests):
            pass
        found.append([request.output_ids for request in requests])
    assert found[0] == found[1]


def test_the_cache_is_on_the_device_and_begins_as_zeros(rig):
    engine = rig.engine()
    assert engine.cache.arrays == []
    (memory,) = [part for part in rig.runtime.device.values() if part.nbytes == 3 * 40 * CACHE.bytes_per_token]
    assert not memory.any()
    engine.prefill(engine.cache.admit(), IDS)
    written = memory.view(np.float32).reshape(4, 3, 2, 40, 16)
    assert written[:, 0, :, :11].all(axis=-1).any()
    assert not written[:, 1:].any()


def test_a_device_that_is_too_small_is_told_with_both_numbers(rig):
    rig.runtime.total = 10_000
    with pytest.raises(DeviceMemoryError, match=r"The float32 cache of 3 rows of 40 positions needs 0\.1 MB"):
        rig.engine()
    assert rig.runtime.leaks() == 0


def test_each_number_of_rows_is_captured_once_and_repeated(captured):
    engine = captured.engine()
    for length in (3, 7, 2):
        engine.prefill(engine.cache.admit(), IDS[:length])
    assert not captured.session.captured
    for tokens in ({0: 5, 1: 6, 2: 7}, {0: 8, 1: 9, 2: 10}, {1: 5}, {0: 5, 1: 6, 2: 7}, {1: 11}):
        engine.step(tokens)
    assert list(captured.session.captured) == ["1", "2"]
    assert engine.capture_problem is None


def test_what_a_graph_read_on_the_host_is_the_capacity_at_every_length(captured):
    engine = captured.engine(capacity=23)
    engine.prefill(engine.cache.admit(), IDS[:3])
    engine.step({0: 5})
    ((frozen,),) = [kind["cpu"].items() for kind in captured.session.captured.values()]
    assert frozen == ("total_sequence_length", 23)


def test_rows_on_both_sides_of_a_full_row_step_together(captured, toy_llama, lowered):
    engine = captured.engine(capacity=4)
    other = OrtEngine(open_session(lowered, OrtOptions(threads=1)), KVCache(toy_llama.spec, 3, 4))
    found = []
    for each in (engine, other):
        for length in (2, 4, 3):
            each.prefill(each.cache.admit(), IDS[:length])
        found.append(each.step({0: 5, 2: 6}))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-5)


def test_a_few_numbers_of_rows_are_captured_however_rows_come_and_go(captured, toy_llama, lowered):
    engine = captured.engine(num_slots=6)
    other = OrtEngine(open_session(lowered, OrtOptions(threads=1)), KVCache(toy_llama.spec, 6, 40))
    rng, tokens = np.random.default_rng(3), {}
    for _ in range(60):
        if tokens and rng.random() < 0.3:
            slot = int(rng.choice(sorted(tokens)))
            del tokens[slot]
            for each in (engine, other):
                each.cache.release(slot)
        if engine.cache.num_free and rng.random() < 0.6:
            ids = IDS[: int(rng.integers(1, 12))]
            for each in (engine, other):
                slot = each.cache.admit()
                tokens[slot] = int(each.prefill(slot, ids)[0].argmax())
        stepping = {slot: tokens[slot] for slot in tokens if rng.random() < 0.6 and engine.cache.lengths[slot] < 40}
        ours, theirs = engine.step(stepping), other.step(stepping)
        for slot in stepping:
            np.testing.assert_allclose(ours[slot], theirs[slot], atol=1e-4)
            tokens[slot] = int(theirs[slot].argmax())
    assert len(captured.session.captured) == 4  # 1, 2, 4 and all 6 rows


def test_a_capture_that_fails_is_told_once_and_the_text_is_the_same(captured, toy_llama):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    engine, other = captured.engine(), captured.engine()
    failing = engine._step._session
    failing.fail["1"] = Fail("operation not permitted when stream is capturing")
    texts = []
    for each in (engine, other):
        request = Request(IDS, RowSampler(SamplingParams(max_tokens=9), IDS))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            list(decode(each, [request]))
        texts.append(request.output_ids)
        assert [str(item.message) for item in told] == [
            f"Decoding continues without CUDA graphs, which is slower: {problem}"
            for problem in [each.capture_problem]
            if problem
        ]
    assert "not permitted" in engine.capture_problem
    assert other.capture_problem is None
    assert texts[0] == texts[1]


def test_a_graph_that_fails_when_it_is_launched_again_is_an_error(captured):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    engine = captured.engine()
    engine.prefill(engine.cache.admit(), IDS)
    engine.step({0: 5})
    captured.session.fail["1"] = Fail("an illegal memory access")
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.step({0: 6})
    assert engine.capture_problem is None
    assert engine.cache.lengths[0] == len(IDS) + 1


@pytest.mark.parametrize("refuses", [True, False])
def test_a_session_that_cannot_capture_is_opened_without(toy_llama, lowered, monkeypatch, refuses):
    from fake_cuda_session import FakeCudaSession

    runtime, asked = FakeCudaRuntime(), []

    def opened(path, options):
        asked.append(dict(options.provider_options))
        if "enable_cuda_graph" in options.provider_options and refuses:
            raise EngineError("not all nodes are on the device")
        return FakeCudaSession(path, runtime, int(options.provider_options["user_compute_stream"]))

    monkeypatch.setattr(ort_cuda_engine, "open_session", opened)
    expected = pytest.warns(RuntimeWarning, match="slower: not all nodes") if refuses else contextlib.nullcontext()
    with expected:
        engine = OrtCudaEngine.open(lowered, toy_llama.spec, cuda=Cuda.of(runtime), num_slots=2, capacity=20)
    engine.prefill(engine.cache.admit(), IDS)
    engine.step({0: 5})
    (stream,) = runtime.streams
    plain = {"user_compute_stream": str(stream)}
    assert asked == [plain | {"enable_cuda_graph": "1"}] + ([plain] if refuses else [])
    assert engine.capture_problem == ("not all nodes are on the device" if refuses else None)
    engine.close()
    assert runtime.leaks() == 0


def test_a_file_that_cannot_be_opened_at_all_leaves_nothing_behind(toy_llama, lowered, monkeypatch):
    runtime = FakeCudaRuntime()
    monkeypatch.setattr(ort_cuda_engine, "open_session", lambda path, options: (_ for _ in ()).throw(EngineError("no")))
    with pytest.raises(EngineError, match="no"):
        OrtCudaEngine.open(lowered, toy_llama.spec, cuda=Cuda.of(runtime), num_slots=2, capacity=20)
    assert runtime.leaks() == 0


@pytest.mark.parametrize("end", [lambda engine: engine.close() or engine.close(), lambda engine: None])
def test_its_memory_is_freed_when_it_is_closed_or_forgotten(rig, end):
    end(rig.engine())
    gc.collect()
    assert rig.runtime.leaks() == 0


def test_a_closed_engine_says_so(rig):
    engine = rig.engine()
    slot = engine.cache.admit()
    engine.close()
    with pytest.raises(MisuseError, match="closed"):
        engine.prefill(slot, IDS)


def test_a_cpu_that_onnx_runtime_puts_in_place_of_the_gpu_is_noticed():
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="runs this on CPUExecutionProvider: its CUDA libraries cannot be loaded"):
        check_provider(session)


def test_a_library_that_is_missing_is_named_and_not_printed(toy_llama, lowered, monkeypatch, capsys):
    line = "Failed to load libcublas.so.13: cannot open shared object file"

    def preload_dlls(cudnn):
        print(line)  # noqa: T201
        print("Please follow a link.")  # noqa: T201
        sys.stdout.write("of another thread\n")

    monkeypatch.setattr("onnxruntime.preload_dlls", preload_dlls)
    cpu = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort_cuda_engine, "open_session", lambda path, options: cpu)
    runtime = FakeCudaRuntime()
    with pytest.raises(EngineError, match=r"cannot be loaded \(Failed to load libcublas.so.13: .*\)\. Install CUDA"):
        OrtCudaEngine.open(lowered, toy_llama.spec, cuda=Cuda.of(runtime), num_slots=2, capacity=20)
    assert set(capsys.readouterr().out.splitlines()) == {"of another thread"}
    assert runtime.leaks() == 0


def test_what_onnx_runtime_says_of_the_libraries_is_read_from_the_real_function(monkeypatch, capsys):
    """Its words differ from one version to the next; that it is a function that prints does not."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("onnxruntime.cuda_version", "13.0")
    assert "libcu" in ort_cuda_engine._load_libraries()
    assert capsys.readouterr().out == ""


def test_a_plain_onnxruntime_beside_the_other_is_named_as_the_trap_it_is(toy_llama, monkeypatch):
    from piston.runtime.backends.environment import Machine

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        MissingExtraError, match=r"has no CUDAExecutionProvider .*the two packages overwrite one another"
    ):
        Machine().require_provider("CUDAExecutionProvider")


def test_the_double_binds_as_onnx_runtime_does():
    import onnxruntime
    from fake_cuda_session import FakeBinding

    for name in ("bind_input", "bind_output"):
        ours, real = (inspect.signature(getattr(kind, name)) for kind in (FakeBinding, onnxruntime.IOBinding))
        assert list(ours.parameters) == list(real.parameters)


@pytest.fixture
def bundle(tmp_path):
    engines = tuple(
        EngineSpec.of(target=target, path="ort-cpu/model.onnx", cache=CACHE, requested={}, actual={"capacity": 64})
        for target in ("ort-cpu", "ort-cuda")
    )
    write_bundle(tmp_path, engines=engines)
    return Bundle.open(tmp_path)


def test_with_a_gpu_and_its_provider_the_gpu_is_taken(bundle):
    machine = machine_with(gpu(), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert select_engine(bundle, machine=machine)[0].target == "ort-cuda"


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (machine_with(), "no CUDA driver"),
        (machine_with(gpu()), "no CUDAExecutionProvider"),
        (machine_with(gpu(free=10), providers=("CUDAExecutionProvider",)), "needs at least 0.0 MB on the GPU"),
    ],
)
def test_without_one_of_them_the_cpu_is_and_the_reason_told(bundle, machine, reason):
    spec, reasons = select_engine(bundle, machine=machine)
    assert spec.target == "ort-cpu"
    assert reason in reasons["ort-cuda"]


@pytest.mark.parametrize("option", [{"threads": 2}, {"profile": "here"}])
def test_options_of_the_cpu_are_refused(bundle, option):
    with pytest.raises(MisuseError, match="but ort-cuda runs on the GPU"):
        open_engine(bundle, bundle.engines("ort-cuda")[0], Sizes(num_slots=1, capacity=8, **option))
