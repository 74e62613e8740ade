"""2:4 sparsity: of every four inputs of an output two weights or more are zero."""

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import array_of, is_weight
from piston.graph.qdq import quantized_weight

GROUP, LEFT = 4, 2
RANK = 2  # [in, out]


def is_sparse(weight: np.ndarray) -> bool:
    """Whether a weight, or its codes, [K, N] is 2:4 sparse along K."""
    if len(weight) % GROUP:
        return False
    zeros = (np.asarray(weight).reshape(-1, GROUP, weight.shape[1]) == 0).sum(axis=1)
    return bool((zeros >= GROUP - LEFT).all())


def sparse_matmuls(graph: ir.Graph) -> dict[str, bool]:
    """Every MatMul by a constant [K, N], in float or in codes, by the node's name, and whether that is 2:4 sparse."""
    found = {}
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        weight, quantized = node.inputs[1], quantized_weight(node.inputs[1])
        value = weight if quantized is None else quantized.codes
        if value is not None and is_weight(value, RANK):
            found[str(node.name)] = is_sparse(array_of(value).astype(np.float32))
    return found
