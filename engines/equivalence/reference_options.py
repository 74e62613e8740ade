"""How a canonical graph is run that other graphs are compared with."""

import onnx_ir as ir

from piston.graph.qdq import dequantized_size
from piston.runtime.backends.session import OrtOptions

FOLDED_MAX = 2 * 2**30  # bytes of float32: larger weights are dequantized in every run, which takes less memory


def reference_options(graph: ir.Graph) -> OrtOptions:
    """Options of a session that runs `graph` some dozen times: quantized weights are dequantized once, at load."""
    return OrtOptions(prepack=False, fold=0 < dequantized_size(graph) <= FOLDED_MAX)
