import gc
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FakeCudaRuntime
from machines import gpu, machine_with
from toy_model import CACHE, write_bundle

from piston.runtime.backends import Sizes, choose, open_engine
from piston.runtime.bundle import Bundle
from piston.runtime.cuda import Cuda
from piston.runtime.decode import Request, decode
from piston.runtime.engine import Engine
from piston.runtime.errors import DeviceMemoryError, EngineError, MissingExtraError, MisuseError
from piston.runtime.manifest import EngineSpec
from piston.runtime.ort_cuda_engine import OrtCudaEngine, check_provider
from piston.runtime.ort_engine import OrtEngine, OrtOptions, open_session
from piston.runtime.row_sampler import RowSampler
from piston.runtime.sampling import Sampling

pytest.importorskip("onnxruntime")

IDS = [17, 3, 90, 44, 5, 5, 128, 61, 22, 9, 77]


@pytest.fixture
def rig(toy):
    from fake_cuda_session import FakeCudaSession

    runtime = FakeCudaRuntime()
    session = FakeCudaSession(toy.path, runtime)

    def engine(num_slots=3, capacity=40):
        return OrtCudaEngine(session, toy.spec, cuda=Cuda.of(runtime), num_slots=num_slots, capacity=capacity)

    return SimpleNamespace(runtime=runtime, engine=engine)


def test_it_is_an_engine(rig):
    assert isinstance(rig.engine(), Engine)


def test_texts_are_those_of_the_cpu(rig, toy):
    other = OrtEngine(open_session(toy.path, OrtOptions(threads=1)), toy.spec, 3, 40)
    found = []
    for engine in (rig.engine(), other):
        requests = [Request(IDS[:count], RowSampler(Sampling(max_tokens=9), IDS[:count])) for count in (3, 11, 1, 6, 2)]
        for _ in decode(engine, requests):
            pass
        found.append([request.output_ids for request in requests])
    assert found[0] == found[1]


def test_the_cache_is_on_the_device_and_begins_as_zeros(rig):
    engine = rig.engine()
    assert engine.cache.arrays == []
    (memory,) = rig.runtime.device.values()
    assert memory.nbytes == 3 * 40 * CACHE.bytes_per_token
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


def test_a_plain_onnxruntime_beside_the_other_is_named_as_the_trap_it_is(toy, monkeypatch):
    from piston.runtime.machine import Machine

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
        EngineSpec(target=target, path="ort-cpu/model.onnx", cache=CACHE, asked={}, got={"capacity": 64})
        for target in ("ort-cpu", "ort-cuda")
    )
    write_bundle(tmp_path, engines=engines)
    return Bundle.open(tmp_path)


def test_with_a_gpu_and_its_provider_the_gpu_is_taken(bundle):
    machine = machine_with(gpu(), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert choose(bundle, machine=machine)[0].target == "ort-cuda"


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (machine_with(), "no CUDA driver"),
        (machine_with(gpu()), "no CUDAExecutionProvider"),
        (machine_with(gpu(free=10), providers=("CUDAExecutionProvider",)), "needs at least 0.0 MB on the GPU"),
    ],
)
def test_without_one_of_them_the_cpu_is_and_the_reason_told(bundle, machine, reason):
    spec, reasons = choose(bundle, machine=machine)
    assert spec.target == "ort-cpu"
    assert reason in reasons["ort-cuda"]


@pytest.mark.parametrize("option", [{"threads": 2}, {"profile": "here"}])
def test_options_of_the_cpu_are_refused(bundle, option):
    with pytest.raises(MisuseError, match="but ort-cuda runs on the GPU"):
        open_engine(bundle, bundle.engines("ort-cuda")[0], Sizes(num_slots=1, capacity=8, **option))
