"""Attention becomes `trt::TRT_Attention`, which TensorRT's parser turns into its own attention layer.

Standard Attention will not do: with is_causal TensorRT aligns queries with the first keys (upper left), and drops the
lengths. TRT_Attention multiplies by no scale, so the query brings it along. It takes lengths or a mask, not both: of
an attention with both, the mask also says which keys are padding (visible_keys.py).
"""

import numpy as np
import onnx_ir as ir

from piston.core.errors import EngineError
from piston.engines.tensorrt.lowering.visible_keys import VisibleKeys
from piston.graph.pattern import (
    Attributes,
    dims_of,
    emit,
    float_attribute,
    graph_of,
    initializer,
    int_attribute,
    replace,
    static_dims,
    tidy,
)

DOMAIN, ATTENTION = "trt", "TRT_Attention"
DECOMPOSABLE = "TRT_decomposable"
FORMS = {"query_form": "padded_bhnd", "kv_form": "padded_bhnd"}
MASK, LENGTHS, NUM_INPUTS = 3, 5, 6  # query, key, value, mask, query lengths, key lengths
RANK = 4  # [batch, heads, seq, head_dim]
ROW = 2  # the axis of seq


class TrtAttentionPass(ir.passes.InPlacePass):
    """Every form of attention that canonical graphs have becomes TRT_Attention.

    | causal | lengths | mask or bias | becomes                                                 |
    |--------|---------|--------------|---------------------------------------------------------|
    | yes    | yes     |              | lower_right over the lengths                            |
    | yes    |         |              | upper_left: each query has its own key, and no more     |
    |        | yes     |              | no causal rule; keys from a row's length on are padding |
    |        |         |              | no causal rule, all keys                                |
    |        |         | yes          | the mask, which the query or the capacity decides       |
    | maybe  | yes     | yes          | one mask or bias of both, and of the causal rule        |

    Args:
        decomposable: whether the compiler may build an attention of several kernels where no single one has the size
            of its heads; else it refuses such a model.

    Raises:
        EngineError: an attention does what TRT_Attention cannot; the message names it.
    """

    def __init__(self, *, decomposable: bool = False) -> None:
        super().__init__()
        self.attributes: Attributes = {**FORMS, **({DECOMPOSABLE: 1} if decomposable else {})}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention."""
        attentions = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
        visible = VisibleKeys()
        for node in attentions:
            _check(node)
            _rewrite(node, visible, self.attributes)
        model.opset_imports[DOMAIN] = 1
        tidy(model)
        return ir.passes.PassResult(model, modified=bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        """No standard attention is left."""
        if left := [node.name for node in model.graph if node.op_type == "Attention"]:
            raise ir.passes.PostconditionError(f"{left[0]} is still a standard Attention.")


def _check(node: ir.Node) -> None:
    mask, past_key, past_value, lengths = [*node.inputs, *[None] * 4][3:7]
    is_causal = int_attribute(node, "is_causal")
    reason = None
    if softcap := float_attribute(node, "softcap"):
        reason = f"it soft-caps its scores at {softcap:g}"
    elif past_key is not None or past_value is not None:
        reason = "it concatenates its past"
    elif any(int_attribute(node, name) for name in ("softmax_precision", "qk_matmul_output_mode")):
        reason = "it gives out its scores or names the precision of its softmax"
    elif len(node.outputs) != 1 or len(static_dims(node.inputs[0])) != RANK:
        reason = "it is not of the form [batch, heads, seq, head_dim]"
    elif is_causal and lengths is None and (mask is not None or not _is_square(node)):
        reason = "it is causal without lengths, and a query has not the number of its key"
    elif mask is not None and mask.dtype not in {ir.DataType.BOOL, ir.DataType.FLOAT}:
        reason = "its mask is neither boolean nor float32"
    elif mask is not None and mask.dtype == ir.DataType.BOOL and static_dims(mask)[-3:-2] not in ([], [1]):
        reason = "its mask differs by head"
    if reason:
        raise EngineError(f"TensorRT has no form for {node.name}: {reason}. Build this model for ort-cpu.")


def _is_square(node: ir.Node) -> bool:
    """Whether there are as many keys as queries."""
    query, key = node.inputs[:2]
    return dims_of(query)[ROW] == dims_of(key)[ROW]


def _rewrite(node: ir.Node, visible: VisibleKeys, forms: Attributes) -> None:
    query, key, value, mask, _, _, lengths = [*node.inputs, *[None] * 4][:7]
    assert query is not None
    head_dim = static_dims(query)[3]
    factor = np.array(float_attribute(node, "scale", head_dim**-0.5), np.float32)
    scale = initializer(graph_of(node), f"{node.name}.scale", factor)
    scaled = emit(node, "Mul", [query, scale], like=query)
    kind = "none"
    inputs = [scaled.outputs[0], key, value]
    if mask is not None:
        inputs.append(visible.mask_of(node))
    elif lengths is not None:
        inputs += [None, None, lengths]
    if mask is None and int_attribute(node, "is_causal"):
        kind = "upper_left" if lengths is None else "lower_right"
    attributes = {"causal_kind": kind, **forms}
    attention = emit(node, ATTENTION, inputs, attributes, domain=DOMAIN, like=node.outputs[0])
    replace(node.outputs[0], attention.outputs[0])
