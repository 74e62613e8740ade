"""Each rewrite on a graph of a few nodes."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_text import only, parse, run

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import EngineError
from piston.engines.lowering.downcast import DowncastPass
from piston.engines.tensorrt.equivalence.attention_function import attach
from piston.engines.tensorrt.lowering import Sizes
from piston.engines.tensorrt.lowering.static_capacity import StaticCapacityPass
from piston.engines.tensorrt.lowering.trt_attention import TrtAttentionPass
from piston.engines.tensorrt.lowering.whole_blocks import WholeBlocksPass

ATTENTION = """
g (float[b, 4, s, 16] q, float[b, 2, 64, 16] k, float[b, 2, 64, 16] v, int64[b] kv_lengths, bool[b, 1, s, 64] mask,
   float16[b, 1, s, 64] half_mask, bool[b, 4, s, 64] head_mask)
    => (float[b, 4, s, 16] y) {{ y = Attention <{}> ({}) }}
"""

SELF_ATTENTION = """
g (float[b, 4, s, 16] q, float[b, 4, s, 16] k, float[b, 4, s, 16] v, int64[b] lengths, bool[s, s] window,
   bool[s, s] others, float[1, 4, s, s] bias) => (float[b, 4, s, 16] y) {{ y = Attention <{}> ({}) }}
"""


def test_blocks_come_to_divide_and_weights_keep_their_values():
    text = """g (float[a, 6] x) => (float[a, 3] y) {
        w = DequantizeLinear <axis = 0, block_size = 4> (codes, scales)
        y = MatMul (x, w)
    }"""
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-100, 100, (6, 3)).astype(np.int8), rng.random((2, 3), np.float32)
    model = parse(text, codes=codes, scales=scales)
    WholeBlocksPass()(model)
    assert only(model, "DequantizeLinear").attributes["block_size"].as_int() == 2
    x = rng.standard_normal((5, 6)).astype(np.float32)
    expected = x @ (codes * np.repeat(scales, 4, axis=0)[:6])
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-4)


def test_blocks_that_divide_stay():
    text = "g (float[a, 8] x) => (float[a, 3] y) { w = DequantizeLinear <axis = 0, block_size = 4> (codes, scales)\n"
    model = parse(text + "y = MatMul (x, w) }", codes=np.ones((8, 3), np.int8), scales=np.ones((2, 3), np.float32))
    assert not WholeBlocksPass()(model).modified


def test_statistics_and_norms_stay_wide_and_everything_else_is_narrow():
    model = parse(
        """g (float[a, 4] x) => (float[a, 4] logits) {
            n = RMSNormalization (x, gain)
            m = MatMul (n, w)
            square = Pow (m, two)
            mean = ReduceMean (square, axes)
            sum = Add (mean, epsilon)
            root = Sqrt (sum)
            logits = Div (m, root)
        }""",
        gain=np.ones(4, np.float32), w=np.eye(4, dtype=np.float32), two=np.float32(2), axes=np.array([-1]),
        epsilon=np.float32(1e-6),
    )  # fmt: skip
    DowncastPass("float16")(model)
    types = {node.op_type: node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"}
    wide = {"RMSNormalization", "Pow", "ReduceMean", "Add", "Sqrt", "Div"}
    assert {name for name, dtype in types.items() if dtype == ir.DataType.FLOAT} == wide
    assert types["MatMul"] == ir.DataType.FLOAT16
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_states_are_narrow_and_other_inputs_and_outputs_are_wide():
    model = parse(
        """g (float[a, 4] audio, float[a, 4] past) => (float[a, 4] alignment, float[a, 4] present) {
            present = Add (audio, past)
            alignment = MatMul (audio, w)
        }""",
        w=np.eye(4, dtype=np.float32),
    )  # fmt: skip
    model.graph.inputs[1].name, model.graph.outputs[1].name = "past.0.key", "present.0.key"
    DowncastPass("float16")(model)
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    narrow = {name for name, dtype in types.items() if dtype == ir.DataType.FLOAT16}
    assert narrow == {"past.0.key", "present.0.key"}


def test_what_is_computed_of_integers_and_what_masks_scores_stays_wide():
    """Positions beyond 2,048 are no float16, and the number that hides a key is beyond it."""
    model = parse(
        """g (int64[s] positions, float[s, 4] x, bool[s, s] hidden, float[4, 4] table) => (float[s, 4] y) {
            numbers = Cast <to = 1> (positions)
            column = Unsqueeze (numbers, axis)
            angles = Mul (column, frequencies)
            turned = Cos (angles)
            rotated = Mul (x, turned)
            across = Transpose <perm = [1, 0]> (rotated)
            scores = MatMul (rotated, across)
            scaled = Mul (scores, half)
            masked = Where (hidden, lowest, scaled)
            shares = Softmax <axis = -1> (masked)
            y = MatMul (shares, x)
        }""",
        axis=np.array([1]), frequencies=np.array([1, 0.1, 0.01, 0.001], np.float32), half=np.float32(0.5),
        lowest=np.float32(np.finfo(np.float32).min),
    )  # fmt: skip
    DowncastPass("float16")(model)
    types = {value.name: value.dtype for node in model.graph for value in node.outputs if node.op_type != "Cast"}
    narrow = {name for name, dtype in types.items() if dtype == ir.DataType.FLOAT16}
    assert narrow == {"rotated", "across", "scores", "y.narrow"}
    wide = {name for name, dtype in types.items() if dtype == ir.DataType.FLOAT}
    assert wide == {"column", "angles", "turned", "scaled", "masked", "shares"}


def test_codes_are_made_of_what_there_is_and_scales_stay_float32():
    model = parse(
        """g (float[a, 4] x) => (float[a, 4] logits) {
            n = RMSNormalization (x, gain)
            q = QuantizeLinear (n, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            logits = MatMul (d, w)
        }""",
        gain=np.ones(4, np.float32), scale=np.float32(0.1), zero=np.int8(0), w=np.eye(4, dtype=np.float32),
    )  # fmt: skip
    DowncastPass("float16")(model)
    quantize, product = only(model, "QuantizeLinear"), only(model, "MatMul")
    assert [value.dtype for value in quantize.inputs[:2]] == [ir.DataType.FLOAT] * 2
    assert product.inputs[0].producer().op_type == "Cast"
    assert [value.dtype for value in product.inputs] == [ir.DataType.FLOAT16] * 2


def test_a_weight_beyond_float16_is_named():
    model = parse("g (float[a, 1] x) => (float[a, 1] logits) { logits = MatMul (x, w) }", w=np.float32([[1e5]]))
    with pytest.raises(EngineError, match=r"w reaches 1e\+05, beyond float16; build with --dtype bf16"):
        DowncastPass("float16")(model)


def test_the_scale_goes_into_the_query_and_the_lengths_to_input_five():
    model = parse(ATTENTION.format("scale = 0.3, is_causal = 1", "q, k, v, , , , kv_lengths"))
    TrtAttentionPass()(model)
    node = only(model, "TRT_Attention")
    assert {name: item.value for name, item in node.attributes.items()} == {
        "causal_kind": "lower_right", "query_form": "padded_bhnd", "kv_form": "padded_bhnd",
    }  # fmt: skip
    assert [None if value is None else value.name for value in node.inputs[1:]] == ["k", "v", None, None, "kv_lengths"]
    assert node.inputs[0].producer().inputs[1].const_value.numpy() == np.float32(0.3)


def test_a_mask_stays_a_mask():
    model = parse(ATTENTION.format("scale = 0.3", "q, k, v, mask"))
    TrtAttentionPass()(model)
    node = only(model, "TRT_Attention")
    assert node.attributes["causal_kind"].as_string() == "none"
    assert node.inputs[3].name == "mask"


@pytest.mark.parametrize(
    ("attributes", "inputs", "kind", "given"),
    [
        ("is_causal = 0", "q, k, v, , , , lengths", "none", [None, None, "lengths"]),
        ("is_causal = 0", "q, k, v", "none", []),
        ("is_causal = 1", "q, k, v", "upper_left", []),
    ],
)
def test_an_encoders_attention_keeps_its_rule(attributes, inputs, kind, given):
    model = parse(SELF_ATTENTION.format(attributes, inputs))
    TrtAttentionPass()(model)
    node = only(model, "TRT_Attention")
    assert node.attributes["causal_kind"].as_string() == kind
    assert [None if value is None else value.name for value in node.inputs[3:]] == given


FORMS = {
    "a window over texts of different lengths": ("is_causal = 0", "q, k, v, window, , , lengths"),
    "a bias over texts of different lengths": ("is_causal = 0", "q, k, v, bias, , , lengths"),
    "a bias over what came before": ("is_causal = 1", "q, k, v, bias, , , lengths"),
    "a window": ("is_causal = 0", "q, k, v, window"),
    "all tokens but the query's own": ("is_causal = 0", "q, k, v, others, , , lengths"),
    "what came before the query": ("is_causal = 1", "q, k, v, others, , , lengths"),
}


@pytest.mark.parametrize("form", FORMS)
def test_lengths_and_the_causal_rule_go_into_the_mask(form, tmp_path):
    """The oracle is Attention itself, as ONNX Runtime computes it, where a query is no padding."""
    attributes, inputs = FORMS[form]
    rng, size = np.random.default_rng(5), 6
    places = np.arange(size)
    feed = {
        **{name: rng.standard_normal((2, 4, size, 16), np.float32) for name in "qkv"},
        "lengths": np.array([6, 4]),
        "window": np.abs(places[:, None] - places) <= 1,
        "others": (places[:, None] != places) | (places[:, None] + places == 0),  # the first has none before it
        "bias": rng.standard_normal((1, 4, size, size), np.float32),
    }
    text = SELF_ATTENTION.format(attributes, inputs)
    expected = run(parse(text), feed)["y"]
    model = parse(text)
    TrtAttentionPass()(model)
    proto = ir.to_proto(model)
    attach(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    (found,) = session.run(None, {name: value for name, value in feed.items() if name in names})
    assert np.isfinite(found).all()
    # A causal query of a row of 4 stands at the row's last places: of 6 queries the first two come before its text.
    first = 2 if "causal = 1" in attributes else 0
    for row, length in enumerate(feed["lengths"] if "lengths" in inputs else [size, size]):
        begin, end = (size - length, size) if first else (0, length)
        np.testing.assert_allclose(found[row, :, begin:end], expected[row, :, begin:end], atol=2e-6)


@pytest.mark.parametrize(
    ("attributes", "inputs", "reason"),
    [
        ("is_causal = 1, softcap = 20.0", "q, k, v, , , , kv_lengths", "soft-caps its scores at 20"),
        ("is_causal = 1", "q, k, v", "causal without lengths, and a query has not the number of its key"),
        ("is_causal = 1", "q, k, v, mask", "causal without lengths, and a query has not the number of its key"),
        ("is_causal = 0", "q, k, v, half_mask", "its mask is neither boolean nor float32"),
        ("is_causal = 0", "q, k, v, head_mask", "its mask differs by head"),
        ("is_causal = 1", "q, k, v, , k, v", "concatenates its past"),
    ],
)
def test_what_has_no_form_is_refused_with_the_reason(attributes, inputs, reason):
    model = parse(ATTENTION.format(attributes, inputs))
    model.graph[0].name = "layer/Attention"
    with pytest.raises(EngineError, match=f"no form for layer/Attention: .*{reason}"):
        TrtAttentionPass()(model)


def test_no_graph_asks_for_the_capacity_and_masks_count_slots_by_a_constant(toy):
    model = ir.load(toy("mistral").path)
    StaticCapacityPass(40)(model)
    pasts = [value for value in model.graph.inputs if value.name.startswith("past.")]
    assert {tuple(value.shape)[2] for value in pasts} == {40}
    assert not any(node.op_type == "Range" for node in model.graph)
    np.testing.assert_array_equal(model.graph.initializers["cache.slots"].const_value.numpy(), np.arange(40))


@pytest.mark.parametrize(("heads", "width", "length", "capacity"), [(3, 64, 50, 50), (2, 16, 50, 52), (1, 8, 10, 16)])
def test_every_row_of_a_cache_begins_at_a_multiple_of_256_bytes(heads, width, length, capacity):
    cache = CacheSpec.of(num_layers=1, num_kv_heads=heads, head_dim=width, dtype="float16")
    sizes = Sizes.of(cache, 4, length)
    assert sizes.capacity == capacity
    assert heads * width * 2 * capacity % 256 == 0
