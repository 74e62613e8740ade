"""What `trt::TRT_Attention` means, in standard operators: a model-local function of the same name.

Attached to a lowered file, it lets ONNX Runtime execute the very graph that the compiler gets. It follows NvInfer.h
(TensorRT 11): no scaling; query i of a row sees key j if j <= i for upper_left, and if j <= i + (s_kv - s_q) for
lower_right, where s_kv is the row's kv_lengths; without a causal rule it sees the keys below kv_lengths, or all; a
boolean mask is True where a query may look, another one is added to the scores. Groups of heads share keys and values.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import parser

from piston.core.errors import EngineError
from piston.engines.tensorrt.lowering.trt_attention import ATTENTION, DECOMPOSABLE, DOMAIN, LENGTHS, MASK

ATTRIBUTES = {"causal_kind", "query_form", "kv_form"}
_SCORES = """
    q_shape = Shape (query)
    k_shape = Shape (key)
    batch = Gather <axis = 0> (q_shape, at_0)
    heads = Gather <axis = 0> (q_shape, at_1)
    seq = Gather <axis = 0> (q_shape, at_2)
    width = Gather <axis = 0> (q_shape, at_3)
    kv_heads = Gather <axis = 0> (k_shape, at_1)
    capacity = Gather <axis = 0> (k_shape, at_2)
    group = Div (heads, kv_heads)
    split = Concat <axis = 0> (batch, kv_heads, group, seq, width)
    grouped = Reshape (query, split)
    one_key = Unsqueeze (key, at_2)
    one_value = Unsqueeze (value, at_2)
    turned = Transpose <perm = [0, 1, 2, 4, 3]> (one_key)
    scores = MatMul (grouped, turned)
    floats = Cast <to = 1> (scores)
"""
_CONSTANTS = """
    at_0 = Constant <value = int64[1] {0}> ()
    at_1 = Constant <value = int64[1] {1}> ()
    at_2 = Constant <value = int64[1] {2}> ()
    at_3 = Constant <value = int64[1] {3}> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    never = Constant <value = float {-inf}> ()
"""
_INDICES = """
    all_queries = Squeeze (seq, at_0)
    all_keys = Squeeze (capacity, at_0)
    rows = Range (zero, all_queries, one)
    row = Unsqueeze (rows, at_1)
    column = Range (zero, all_keys, one)
"""
_VISIBLE = {
    "upper_left": _INDICES
    + """
    causal = LessOrEqual (column, row)
    ones = Constant <value_ints = [1, 1, 1, 1, 1]> ()
    bool_shape = Concat <axis = 0> (at_1, at_1, at_1, seq, capacity)
    visible = Reshape (causal, bool_shape)
""",
    "lower_right": _INDICES
    + """
    lengths = Cast <to = 7> (kv_lengths)
    offset = Sub (lengths, seq)
    axes = Constant <value = int64[4] {1, 2, 3, 4}> ()
    offsets = Unsqueeze (offset, axes)
    last = Add (row, offsets)
    visible = LessOrEqual (column, last)
""",
    "lengths": _INDICES
    + """
    lengths = Cast <to = 7> (kv_lengths)
    axes = Constant <value = int64[4] {1, 2, 3, 4}> ()
    ends = Unsqueeze (lengths, axes)
    visible = Less (column, ends)
""",
    "masked": """
    visible = Unsqueeze (mask, at_2)
""",
    "biased": """
    group_shape = Concat <axis = 0> (batch, kv_heads, group, seq, capacity)
    bias_shape = Concat <axis = 0> (batch, heads, seq, capacity)
    all_biases = Expand (mask, bias_shape)
    grouped_bias = Reshape (all_biases, group_shape)
    added = Cast <to = 1> (grouped_bias)
    kept = Add (floats, added)
""",
    "whole": """
    kept = Identity (floats)
""",
}
_HIDDEN = """
    kept = Where (visible, floats, never)
"""
_RESULT = """
    shares = Softmax <axis = -1> (kept)
    narrow = CastLike (shares, value)
    mixed = MatMul (narrow, one_value)
    merged = Concat <axis = 0> (batch, heads, seq, minus_1)
    result = Reshape (mixed, merged)
"""


def attach(model: onnx.ModelProto) -> None:
    """Give a model the functions its TRT_Attention nodes call, each node naming the one it calls as its overload.

    Raises:
        EngineError: a node has attributes or inputs whose meaning is not written down here; the message names it.
    """
    overloads, types = set(), {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    types |= {item.name: item.type.tensor_type.elem_type for item in model.graph.input}
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, ATTENTION):
            node.overload = _overload(node, types)
            overloads.add(node.overload)
    model.functions.extend(_function(overload) for overload in sorted(overloads))


def write_executable(lowered: Path, out: Path) -> Path:
    """Write `lowered` with the functions attached to `out`, which must be beside it to read the same weights."""
    model = onnx.load(str(lowered), load_external_data=False)
    attach(model)
    onnx.save(model, str(out))
    return out


def _overload(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    attributes = {item.name: item.s.decode() for item in node.attribute if item.name != DECOMPOSABLE}  # how, not what
    given = [bool(name) for name in [*node.input, *[""] * 6][:6]]
    kind = str(attributes.get("causal_kind", ""))
    forms = {attributes.get("query_form"), attributes.get("kv_form")}
    if set(attributes) != ATTRIBUTES or forms != {"padded_bhnd"}:
        raise EngineError(f"{node.name} has attributes {attributes}, whose meaning is not written down.")
    mask = types.get(node.input[MASK]) if given[MASK] else None
    if kind == "none" and given == [True, True, True, True, False, False] and mask is not None:
        return "masked" if mask == onnx.TensorProto.BOOL else "biased"
    if kind == "none" and given[:5] == [True, True, True, False, False]:
        return "lengths" if given[LENGTHS] else "whole"
    if kind == "lower_right" and given == [True, True, True, False, False, True]:
        return kind
    if kind == "upper_left" and given[:5] == [True, True, True, False, False]:
        return kind
    raise EngineError(f"{node.name} is {kind or 'of no causal_kind'} with inputs {given}; no such form is known.")


def _function(overload: str) -> onnx.FunctionProto:
    body = _VISIBLE[overload] + ("" if "kept =" in _VISIBLE[overload] else _HIDDEN) + _RESULT
    text = (
        f'<opset_import: ["" : 24], domain: "{DOMAIN}", overload: "{overload}"> {ATTENTION} '
        "<causal_kind, query_form, kv_form, TRT_decomposable> "
        "(query, key, value, mask, query_lengths, kv_lengths) => (result) {"
        f"{_CONSTANTS} minus_1 = Constant <value = int64[1] {{-1}}> () {_SCORES}{body} }}"
    )
    return parser.parse_function(text)
