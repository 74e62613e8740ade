import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime
import pytest
from onnx_text import parse

from piston.calibration.graph.linears import by_input, find_linears, sum_beside

WEIGHTS = {"w": np.zeros((4, 6), np.float32), "t": np.zeros((5, 4), np.float32), "s": np.zeros((2, 3, 4), np.float32)}


def linears_of(body, **weights):
    header = "g (float[batch, seq, 4] x, float[4, 6] fed, int64[batch, seq] ids) => (float[batch, seq, n] y)"
    return find_linears(parse(header + "{" + body + "}", **(weights or WEIGHTS)))


def test_a_matmul_by_a_constant_matrix_is_a_linear():
    (linear,) = linears_of("y = MatMul (x, w)")
    assert (linear.input_name, linear.weight.name, linear.shape) == ("x", "w", (4, 6))
    assert (linear.is_transposed, linear.is_tied) == (False, False)


def test_a_transposed_matrix_is_found_behind_its_transpose():
    (linear,) = linears_of("wt = Transpose <perm = [1, 0]> (t)   y = MatMul (x, wt)")
    assert (linear.weight.name, linear.shape, linear.is_transposed) == ("t", (4, 5), True)


def test_a_matrix_that_something_else_reads_is_tied():
    (linear,) = linears_of("e = Gather (t, ids)   wt = Transpose (t)   y = MatMul (e, wt)")
    assert linear.is_tied


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, fed)",
        "y = MatMul (w, fed)",
        "xt = Transpose <perm = [0, 2, 1]> (x)   y = MatMul (x, xt)",
        "y = MatMul (x, s)",
        "y = Add (x, w)",
        "y = com.microsoft.FusedMatMul (x, w)",
    ],
)
def test_what_is_no_product_by_a_constant_matrix_is_no_linear(body):
    assert linears_of(body) == []


def test_a_model_has_its_linears_by_the_paths_of_their_modules(model_dir):
    groups = by_input(find_linears(ir.load(model_dir / "model.onnx")))
    names = [[linear.name.removeprefix("model.") for linear in group] for group in groups.values()]
    layers = [
        [
            [f"layers.{layer}.self_attn.{part}_proj" for part in "qkv"],
            [f"layers.{layer}.self_attn.o_proj"],
            [f"layers.{layer}.mlp.gate_proj", f"layers.{layer}.mlp.up_proj"],
            [f"layers.{layer}.mlp.down_proj"],
        ]
        for layer in range(2)
    ]
    assert names == [*layers[0], *layers[1], ["lm_head"]]


def test_a_tied_head_is_a_linear_too(bfloat16_model_dir):
    *_, head = find_linears(ir.load(bfloat16_model_dir / "model.onnx"))
    assert (head.name, head.is_transposed, head.is_tied) == ("lm_head", True, True)
    assert head.shape[0] == 64


@pytest.mark.parametrize("body", ["y = MatMul (x, w)", "p = MatMul (x, w)   y = Add (p, bias)"])
def test_a_product_beside_a_linear_that_gives_the_graphs_output_leaves_its_name(body):
    header = "g (float[batch, seq, 4] x) => (float[batch, seq, 6] y)"
    weights = {"w": np.ones((4, 6), np.float32), "bias": np.ones(6, np.float32)}
    model = parse(header + "{" + body + "}", **weights)
    (linear,) = find_linears(model)
    sum_beside(linear, "rest", linear.input, linear.weight)
    (output,) = model.graph.outputs
    assert (output.name, output.producer().op_type) == ("y", "Add")
    ir.passes.common.CheckerPass()(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (found,) = session.run(["y"], {"x": np.ones((1, 2, 4), np.float32)})
    assert (found == (8 if "bias" not in body else 9)).all()
