import onnx_ir as ir
import pytest
from attention_text import CAUSAL, HEADS_APART, HEADS_TOGETHER, NO_ROTARY, ROTARY, SCATTER, assert_lowered_equal, layer
from onnx_text import only, operators, parse

from piston.engines.lowering.group_query_attention import GroupQueryAttentionPass


def test_a_layer_becomes_one_node_on_the_linears_outputs():
    model = layer()
    assert_lowered_equal(model, num_heads=4, kv_num_heads=2, do_rotary=1, rotary_interleaved=0)
    assert operators(model) == {"Sub": 1, "ReduceMax": 1, "Cast": 2, "GroupQueryAttention": 1}
    fused = only(model, "GroupQueryAttention")
    assert [value.name for value in fused.inputs[:3]] == ["query", "key", "value"]
    assert fused.attributes["scale"].as_float() == pytest.approx(0.3)


def test_inputs_that_nothing_reads_any_more_leave_the_interface():
    model = layer()
    GroupQueryAttentionPass()(model)
    names = [value.name for value in model.graph.inputs]
    assert names == ["query", "key", "value", "kv_lengths", "past.0.key", "past.0.value"]


def test_positions_stay_where_something_else_reads_them():
    model = layer(HEADS_APART, NO_ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER)
    model.graph.append(ir.node("Neg", [model.graph.inputs[3]]))
    model.graph[-1].outputs[0].name = "extra"
    model.graph.outputs.append(model.graph[-1].outputs[0])
    model.graph[-1].outputs[0].dtype = ir.DataType.INT64
    GroupQueryAttentionPass()(model)
    assert "position_ids" in {value.name for value in model.graph.inputs}


def test_a_layer_without_rotary_is_not_rotated():
    model = layer(HEADS_APART, NO_ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER)
    assert_lowered_equal(model)
    assert "do_rotary" not in only(model, "GroupQueryAttention").attributes


def test_interleaved_rotary_is_passed_on():
    rotary = ROTARY.replace("RotaryEmbedding", "RotaryEmbedding <interleaved = 1>")
    assert_lowered_equal(layer(HEADS_APART, rotary, SCATTER, CAUSAL, HEADS_TOGETHER), rotary_interleaved=1)


def test_partial_rotary_is_told_by_the_tables():
    rotary = ROTARY.replace("RotaryEmbedding", "RotaryEmbedding <rotary_embedding_dim = 16>")
    model = layer(HEADS_APART, rotary, SCATTER, CAUSAL, HEADS_TOGETHER, head_dim=32, rotary_dim=16)
    assert_lowered_equal(model, do_rotary=1)


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(24, 24), (16, 8)])
def test_rotary_the_kernel_refuses_stays_outside_and_needs_no_transpose(head_dim, rotary_dim):
    rotary = ROTARY.replace("RotaryEmbedding", f"RotaryEmbedding <rotary_embedding_dim = {rotary_dim}>")
    parts = (HEADS_APART, rotary, SCATTER, CAUSAL, HEADS_TOGETHER)
    model = layer(*parts, head_dim=head_dim, rotary_dim=rotary_dim)
    assert_lowered_equal(model)
    assert operators(model) == {"RotaryEmbedding": 2, "Sub": 1, "ReduceMax": 1, "Cast": 2, "GroupQueryAttention": 1}


def test_norms_of_heads_behind_the_transpose_are_taken_before_it():
    norms = """
        qn = RMSNormalization <axis = -1, epsilon = 1e-5> (q, q_norm)
        kn = RMSNormalization <axis = -1, epsilon = 1e-5> (k, k_norm)
    """
    rotary = ROTARY.replace("(q,", "(qn,").replace("(k,", "(kn,")
    model = layer(HEADS_APART, norms, rotary, SCATTER, CAUSAL, HEADS_TOGETHER)
    assert_lowered_equal(model, do_rotary=1)
    assert "Transpose" not in operators(model)


def test_norms_of_heads_before_the_transpose_stay_there():
    norms = """
        qn = LayerNormalization <axis = -1, epsilon = 1e-5> (q3, q_norm)
        kn = LayerNormalization <axis = -1, epsilon = 1e-5> (k3, k_norm)
    """
    apart = (
        HEADS_APART.replace("q = Transpose", norms + "q = Transpose").replace("(q3)", "(qn)").replace("(k3)", "(kn)")
    )
    model = layer(apart, ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER)
    assert_lowered_equal(model, do_rotary=1)
    assert "Transpose" not in operators(model)


def test_one_key_value_head_needs_no_transpose():
    keys = "k = Unsqueeze (key, one)\n v = Unsqueeze (value, one)\n"
    apart = "q3 = Reshape (query, q_shape)\n q = Transpose <perm = [0, 2, 1, 3]> (q3)\n" + keys
    model = layer(apart, ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER, kv_heads=1)
    assert_lowered_equal(model, kv_num_heads=1)
    assert "Transpose" not in operators(model)


def test_query_of_another_origin_is_transposed():
    model = layer(HEADS_APART.replace("q = Transpose <perm = [0, 2, 1, 3]> (q3)", """
        q4 = Transpose <perm = [0, 2, 1, 3]> (q3)
        q = Neg (q4)
    """), ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER)  # fmt: skip
    assert_lowered_equal(model, do_rotary=1)


def test_output_read_by_head_is_given_by_head():
    together = """
        b = Neg (a)
        a3 = Transpose <perm = [0, 2, 1, 3]> (b)
        output = Reshape (a3, o_shape)
    """
    assert_lowered_equal(layer(HEADS_APART, ROTARY, SCATTER, CAUSAL, together))


def test_softcap_is_passed_on():
    capped = CAUSAL.replace("is_causal = 1", "is_causal = 1, softcap = 2.0")
    assert_lowered_equal(layer(HEADS_APART, ROTARY, SCATTER, capped, HEADS_TOGETHER), softcap=2.0)


def test_a_graph_without_lengths_is_no_decoder():
    model = parse("g (float[a] x) => (float[a] y) { y = Relu (x) }")
    with pytest.raises(ir.passes.PreconditionError, match="kv_lengths"):
        GroupQueryAttentionPass()(model)


def test_heads_cut_from_an_unsqueezed_tensor_need_no_transpose():
    apart = HEADS_APART.replace(
        "q3 = Reshape (query, q_shape)",
        """
        one_row = Unsqueeze (query, one)
        rows = Shape <start = 0, end = 2> (query)
        by_head = Concat <axis = 0> (rows, heads_dim)
        q3 = Reshape (one_row, by_head)
        """,
    )
    model = layer(apart, ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER)
    assert_lowered_equal(model)
    assert "Transpose" not in operators(model)
