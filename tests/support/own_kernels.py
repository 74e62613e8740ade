"""Piston's own kernels, compiled for the tests, and one operator of theirs run alone."""

import functools
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from piston.core.errors import Error
from piston.runtime import kernels
from piston.runtime.kernels.compiling import COMPILERS, compile_library

TYPES = {
    np.dtype(np.float32): 1,
    np.dtype(np.uint8): 2,
    np.dtype(np.int8): 3,
    np.dtype(np.uint16): 4,
    np.dtype(np.int32): 6,
    np.dtype(np.int64): 7,
}


@functools.cache
def why_not() -> str | None:
    """What keeps the kernels from running here; the compiler must be able to compile them where there is one."""
    if not any(map(shutil.which, COMPILERS)):
        return "no C++ compiler"
    compile_library()
    try:
        kernels.require()
    except Error as problem:
        return str(problem)
    return None


def need_kernels():
    if reason := why_not():
        pytest.skip(reason)


def run_alone(op_type, inputs, num_outputs=1, *, threads=2, **attributes):
    """Outputs of one operator on arrays; None leaves an input out. Initializers and inputs are the same to it.

    Instead of a number of outputs, whether each is asked for.
    """
    asked = [True] * num_outputs if isinstance(num_outputs, int) else num_outputs
    given = {f"i{index}": np.asarray(array) for index, array in enumerate(inputs) if array is not None}
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    outputs = [f"o{index}" if is_asked else "" for index, is_asked in enumerate(asked)]
    node = helper.make_node(op_type, names, outputs, domain="piston", **attributes)
    infos = [helper.make_tensor_value_info(name, TYPES[array.dtype], array.shape) for name, array in given.items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
    graph = helper.make_graph([node], "alone", infos, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("piston", 1)])
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # the kernels have their own
    options.enable_cpu_mem_arena = False  # so that each output is an allocation of its own, whose bounds can be checked
    options.register_custom_ops_library(str(kernels.require()))
    kernels.set_threads(threads)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)
