"""Weights that are computed from other weights when the model is saved, one at a time, and never all in memory."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def derived_weight(
    graph: ir.Graph,
    name: str,
    sources: Sequence[ir.Value],
    dims: Sequence[int],
    make: Callable[..., NDArray[np.generic]],
    *,
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Register an initializer of shape `dims` that is `make(*arrays of the sources)`.

    It has the first source's type unless `dtype` says otherwise.

    The sources may be removed from the graph: their tensors are kept, and so is what those read from.
    """
    tensors = [source.const_value for source in sources]
    dtype = dtype or sources[0].dtype
    assert dtype is not None

    def evaluate() -> ir.TensorProtocol:
        arrays = (tensor.numpy() for tensor in tensors if tensor is not None)
        return ir.tensor(np.ascontiguousarray(make(*arrays)), dtype=dtype, name=name)

    tensor = ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(dims), name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims), const_value=tensor)
    graph.register_initializer(value)
    return value
