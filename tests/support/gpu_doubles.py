"""A pytest plugin: `pytest tests/gpu -p gpu_doubles` runs the tests for GPUs on the doubles that compute.

So they can be run, and found broken, where there is no GPU; what they measure then says nothing.
"""

import sys

import onnx_ir as ir
from fake_cuda import FakeCudaRuntime
from fake_tensorrt import FakeTensorRT, make_plan
from machines import gpu, machine_with

from piston.engines.tensorrt import build
from piston.engines.tensorrt.compile import Compiled
from piston.engines.tensorrt.equivalence.attention_function import attach
from piston.runtime.backends import cuda_driver as cuda
from piston.runtime.backends import registry as backends

RUNTIME = FakeCudaRuntime()
MODULE = FakeTensorRT(RUNTIME)


def compile_double(path, goal, target, profiles, options, progress):
    """The compiler's double: a plan that FakeTensorRT executes."""
    model = ir.to_proto(ir.external_data.load_to_model(ir.load(path)))
    attach(model)
    goal.write_bytes(make_plan(model, profiles))
    return Compiled(compiler_version=MODULE.__version__, layers=len(model.graph.node), plan_bytes=goal.stat().st_size)


def pytest_configure():
    sys.modules["tensorrt_rtx"] = MODULE
    cuda.Cuda.open = classmethod(lambda cls, index=0: cls.of(RUNTIME, index))
    backends.Machine = lambda: machine_with(gpu("sm89"))
    build.compile_plan = compile_double
