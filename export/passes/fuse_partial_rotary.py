"""Concat(RotaryEmbedding(x[..., :r]), x[..., r:]) becomes RotaryEmbedding(x, rotary_embedding_dim=r)."""

import onnx_ir as ir
from onnx_ir.passes import common


class FusePartialRotaryPass(ir.passes.InPlacePass):
    """Some models cut the rotated part out themselves; the operator can do that (RotaryEmbedding-23)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such Concat."""
        modified = False
        for concat in [node for node in model.graph if node.op_type == "Concat"]:
            if (found := _match(concat)) is not None:
                rotary, whole = found
                width = _width_of(rotary.inputs[0])
                rotary.replace_input_with(0, whole)
                rotary.attributes["rotary_embedding_dim"] = ir.AttrInt64("rotary_embedding_dim", width)
                output = rotary.outputs[0]
                output.shape = concat.outputs[0].shape
                concat.outputs[0].replace_all_uses_with(output)
                model.graph.remove(concat, safe=True)
                modified = True
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _match(concat: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    if len(concat.inputs) != 2:  # noqa: PLR2004
        return None
    rotated, rest = concat.inputs
    rotary = rotated.producer() if rotated is not None else None
    tail = rest.producer() if rest is not None else None
    if rotary is None or tail is None or rotary.op_type != "RotaryEmbedding" or tail.op_type != "Slice":
        return None
    head = rotary.inputs[0].producer() if rotary.inputs[0] is not None else None
    if head is None or head.op_type != "Slice" or head.inputs[0] is not tail.inputs[0]:
        return None
    whole = head.inputs[0]
    start, end = _constant(tail.inputs[1]), _constant(head.inputs[2])
    if whole is None or start is None or start != end or start != _width_of(rotary.inputs[0]):
        return None
    return rotary, whole


def _constant(value: ir.Value | None) -> int | None:
    array = None if value is None or value.const_value is None else value.const_value.numpy()
    return None if array is None or array.size != 1 else int(array.reshape(-1)[0])


def _width_of(value: ir.Value | None) -> int:
    shape = value.shape if value is not None else None
    return int(shape[-1]) if shape is not None and isinstance(shape[-1], int) else -1
