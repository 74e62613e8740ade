"""Attention becomes `trt::TRT_Attention`, which TensorRT's parser turns into its own attention layer.

Standard Attention will not do: with is_causal TensorRT aligns queries with the first keys (upper left), and drops the
lengths. TRT_Attention multiplies by no scale, so the query brings it along.
"""

import numpy as np
import onnx_ir as ir

from piston.core.errors import EngineError
from piston.graph.pattern import emit, float_attribute, graph_of, initializer, int_attribute, replace, static_dims, tidy

DOMAIN, ATTENTION = "trt", "TRT_Attention"
FORMS = {"query_form": "padded_bhnd", "kv_form": "padded_bhnd"}
LENGTHS, NUM_INPUTS = 5, 6  # query, key, value, mask, query lengths, key lengths


class TrtAttentionPass(ir.passes.InPlacePass):
    """A causal Attention over kv_lengths becomes lower_right over them; one with a window's mask keeps the mask.

    Raises:
        EngineError: an attention does what TRT_Attention cannot; the message names it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention."""
        attentions = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
        for node in attentions:
            _check(node)
            _rewrite(node)
        model.opset_imports[DOMAIN] = 1
        tidy(model)
        return ir.passes.PassResult(model, modified=bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        """No standard attention is left."""
        if left := [node.name for node in model.graph if node.op_type == "Attention"]:
            raise ir.passes.PostconditionError(f"{left[0]} is still a standard Attention.")


def _check(node: ir.Node) -> None:
    mask, past_key, past_value, lengths = [*node.inputs, *[None] * 4][3:7]
    reason = None
    if softcap := float_attribute(node, "softcap"):
        reason = f"it soft-caps its scores at {softcap:g}"
    elif past_key is not None or past_value is not None:
        reason = "it concatenates its past"
    elif any(int_attribute(node, name) for name in ("softmax_precision", "qk_matmul_output_mode")):
        reason = "it gives out its scores or names the precision of its softmax"
    elif len(node.outputs) != 1 or len(static_dims(node.inputs[0])) != 4:  # noqa: PLR2004 - rank
        reason = "it is not of the form [batch, heads, seq, head_dim]"
    elif mask is None and (not int_attribute(node, "is_causal") or lengths is None or lengths.name != "kv_lengths"):
        reason = "it is neither causal over kv_lengths nor masked"
    elif mask is not None and (
        int_attribute(node, "is_causal") or lengths is not None or mask.dtype != ir.DataType.BOOL
    ):
        reason = "its mask is not a boolean one alone"
    if reason:
        raise EngineError(f"TensorRT has no form for {node.name}: {reason}. Build this model for ort-cpu.")


def _rewrite(node: ir.Node) -> None:
    query, key, value, mask, *_ = [*node.inputs, None][:4]
    assert query is not None
    head_dim = static_dims(query)[3]
    factor = np.array(float_attribute(node, "scale", head_dim**-0.5), np.float32)
    scale = initializer(graph_of(node), f"{node.name}.scale", factor)
    scaled = emit(node, "Mul", [query, scale], like=query)
    lengths = node.graph.inputs  # type: ignore[union-attr]
    kv_lengths = next(item for item in lengths if item.name == "kv_lengths")
    inputs = [scaled.outputs[0], key, value, mask] if mask is not None else [
        scaled.outputs[0], key, value, None, None, kv_lengths
    ]  # fmt: skip
    attributes = {"causal_kind": "none" if mask is not None else "lower_right", **FORMS}
    attention = emit(node, ATTENTION, inputs, attributes, domain=DOMAIN, like=node.outputs[0])
    replace(node.outputs[0], attention.outputs[0])
