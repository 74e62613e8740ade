"""Attention of a decoder over its source becomes that of Piston's own kernels."""

import onnx_ir as ir

from piston.core.bundle.interface import is_cross
from piston.engines.lowering.kernels.bidirectional import BIAS, LENGTHS, emit_merged, input_of, is_plain
from piston.engines.lowering.kernels.heads import HEAD_STEP, RANK, linear_of, merged, unscaled
from piston.engines.lowering.kernels.kernel_pass import KernelPass
from piston.graph.pattern import static_dims


class KernelCrossAttentionPass(KernelPass):
    """Attention over cross states, with the Reshapes and Transposes around it, becomes CrossAttention(Codes).

    A bias, soft caps and a head_dim that is no multiple of 32 stay with ONNX Runtime.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        if not is_plain(node) or input_of(node, BIAS) is not None:
            return False
        query, key, value = (static_dims(value) for value in node.inputs[:BIAS])
        return (
            all(is_cross(getattr(state, "name", None)) for state in node.inputs[1:BIAS])
            and len(query) == len(key) == RANK
            and key == value
            and query[3] == key[3]
            and key[3] > 0
            and key[3] % HEAD_STEP == 0
            and key[1] > 0
            and query[1] % key[1] == 0
            and linear_of(node.inputs[0]) is not None
            and merged(node) is not None
        )

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        query = linear_of(node.inputs[0])
        assert query is not None
        query, factor = unscaled(query)
        emit_merged(node, "CrossAttention", [query, *node.inputs[1:BIAS], input_of(node, LENGTHS)], factor, [])
