"""Attention probabilities of an engine's graph as outputs besides its own, which stay what they are.

The standard Attention (opset 23) and ONNX Runtime's GroupQueryAttention give them out themselves; a model that computes
attention by itself has them behind its Softmax. Piston's own kernels never have a whole row of them.
"""

from dataclasses import dataclass

import onnx_ir as ir

from piston.core.bundle.interface import is_cross
from piston.core.errors import MisuseError
from piston.graph.pattern import MICROSOFT

AFTER_SOFTMAX = {"Attention": ("qk_matmul_output_mode", 3), "GroupQueryAttention": ("qk_output", 2)}
WEIGHTS_AT = 3  # of the outputs of both
OWN_KERNELS = "piston"  # the domain of Piston's operators
PASSED_ON = ("Cast", "Identity", "Reshape", "Where")
DEPTH = 4  # nodes between a Softmax and the product with the values


@dataclass(frozen=True, slots=True)
class TappedAttention:
    """One attention: the output [batch, heads, queries, keys] with its probabilities, float32."""

    output: str
    layer: int  # among those of its kind, in the order of the graph
    is_cross: bool  # over the source of an encoder-decoder


def tap_attention(model: ir.Model) -> list[TappedAttention]:
    """Add the outputs, in place; keys beyond those of the row are in them too.

    Raises:
        MisuseError: the graph has an attention that gives no probabilities, or none at all.
    """
    found: list[TappedAttention] = []
    counts = {False: 0, True: 0}
    for node in list(model.graph):
        if node.domain == OWN_KERNELS and "Attention" in node.op_type:
            raise MisuseError(f"{node.op_type} of Piston's own kernels keeps no attention weights.")
        weights, crosses = _weights(node)
        if weights is None:
            continue
        weights.name = f"attention.{'cross' if crosses else 'self'}.{counts[crosses]}"
        weights.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(weights)
        found.append(TappedAttention(weights.name, counts[crosses], crosses))
        counts[crosses] += 1
    if not found:
        raise MisuseError("The graph has no attention that gives its weights.")
    return found


def _weights(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The probabilities of an attention, and whether it reads a source; None of other nodes."""
    if (node.domain, node.op_type) in {("", "Attention"), (MICROSOFT, "GroupQueryAttention")}:
        attribute, mode = AFTER_SOFTMAX[node.op_type]
        node.attributes[attribute] = ir.AttrInt64(attribute, mode)
        before = len(node.outputs)
        node.resize_outputs(max(before, WEIGHTS_AT + 1))
        for output in node.outputs[before:WEIGHTS_AT]:
            output.name = ""
        return node.outputs[WEIGHTS_AT], is_cross(getattr(node.inputs[1], "name", None))
    return (_behind_softmax(node), False) if (node.domain, node.op_type) == ("", "Softmax") else (None, False)


def _behind_softmax(softmax: ir.Node) -> ir.Value | None:
    """What is multiplied by the values, by head; None of a Softmax that is no attention's."""
    value = weights = softmax.outputs[0]
    for _ in range(DEPTH):
        uses = list(value.uses())
        if value.is_graph_output() or len(uses) != 1:
            return None
        node, index = uses[0]
        if node.op_type in {"MatMul", "FusedMatMul"}:
            other = node.inputs[1]
            return weights if index == 0 and other is not None and not other.is_initializer() else None
        if node.op_type not in PASSED_ON:
            return None
        value = node.outputs[0]
        if node.op_type == "Where":  # what is masked once more
            weights = value
    return None
