"""TensorRT engines on fakes that execute: a toy's graph as a plan, a GPU of a gigabyte."""

import gc
import sys
from types import SimpleNamespace

import pytest
from fake_cuda import FakeCudaRuntime
from fake_tensorrt import FakeTensorRT
from machines import gpu, machine_with

from piston.runtime.backends import cuda_driver as cuda
from piston.runtime.backends import registry as backends


@pytest.fixture(scope="session")
def plan_bytes(toy_llama):
    """Plans of the toy by their sizes; each is made once."""
    pytest.importorskip("onnx_ir")
    from fake_plan import plan_of

    made = {}

    def plan_bytes(dtype="float32", **sizes):
        key = (dtype, *sorted(sizes.items()))
        if key not in made:
            made[key] = plan_of(toy_llama.path, toy_llama.spec.with_dtype(dtype), **sizes)
        return made[key]

    gc.freeze()  # what torch holds need not be looked through each time a test asks whether all is freed
    yield plan_bytes
    gc.unfreeze()


@pytest.fixture
def rig(toy_llama, plan_bytes):
    """A GPU, a TensorRT, and a way to open the toy on them; whatever is open at the end must have been freed."""
    from piston.runtime.backends.tensorrt.engine import TensorRTEngine
    from piston.runtime.backends.tensorrt.plan import Plan

    runtime = FakeCudaRuntime()
    module = FakeTensorRT(runtime)
    opened = []

    def engine(num_slots=4, capacity=48, chunk=16, max_logits=4, **plan):
        data, _ = plan_bytes(**({"max_batch": 4, "max_length": 48, "chunk": chunk, "max_logits": max_logits} | plan))
        made = TensorRTEngine.open(
            Plan(module, data, "toy.plan", None),
            toy_llama.spec.with_dtype(plan.get("dtype", "float32")),
            cuda=cuda.Cuda.of(runtime),
            num_slots=num_slots,
            capacity=capacity,
            max_top_k=64,
        )
        opened.append(made)
        return made

    yield SimpleNamespace(runtime=runtime, module=module, engine=engine)
    for made in opened:
        made.close()
    assert runtime.leaks() == 0


@pytest.fixture
def machine(monkeypatch):
    """This machine with a GPU, a driver and TensorRT-RTX."""
    runtime = FakeCudaRuntime()
    module = FakeTensorRT(runtime)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(cuda.Cuda, "open", classmethod(lambda cls, index=0: cls.of(runtime, index)))
    monkeypatch.setattr(backends, "Machine", lambda: machine_with(gpu("sm89")))
    return SimpleNamespace(runtime=runtime, module=module)
