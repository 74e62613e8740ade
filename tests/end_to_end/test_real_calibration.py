"""SmolLM2-135M calibrated by the command that a user types, on few and short rows."""

import onnx
import pytest

from piston.cli.main import main

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def calibrated(demo_model_dir, tmp_path_factory):
    """A w8a8 directory with INT8 tables, and what the command printed."""
    out = tmp_path_factory.mktemp("calibrated") / "w8a8"
    words = ["--scheme", "w8a8", "--data", "builtin", "--samples", "8", "--seq-len", "128"]
    command = ["calibrate", str(demo_model_dir), "-o", str(out), *words, "--embedding", "int8", "--head", "int8"]
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("piston.calibration.cli.print_json", lines.append)
        assert main([*command, "--json", "--quiet"]) == 0
    return out, lines[0]


def test_it_costs_little_and_goes_on_in_words(calibrated):
    check = calibrated[1]["check"]
    assert check["near"]["ppl_change"]["value"] < 0.2  # 2 % on 64 rows of 512; without smoothing 84 %
    assert check["near"]["top1"]["value"] > 0.75
    assert len(check["generated"].split()) > 3


def test_weights_are_within_a_tenth_of_the_bits_promised(calibrated):
    out, printed = calibrated
    size = printed["size"]
    assert size["actual"] == (out / "model.onnx.data").stat().st_size
    assert abs(size["actual"] / size["promised"] - 1) < 0.1
    # 30 layers of 3,538,944 weights and a tied table of 49,152 x 576, a byte each; norms and rotary tables in float.
    assert size["promised"] == pytest.approx(30 * 3_538_944 + 49_152 * 576, rel=0.03)


def test_every_multiply_add_has_codes_on_both_sides_and_every_down_proj_a_remainder(calibrated):
    out, printed = calibrated
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    work, products = dict[str, int](), 0
    for node in graph.node:
        sides = [made.get(name) for name in node.input]
        if node.op_type != "MatMul" or sides[1] is None or sides[1].op_type != "DequantizeLinear":
            continue
        assert sides[0].op_type == "DequantizeLinear"
        rows, columns = shapes[sides[1].input[0]]
        work[sides[1].input[0]] = rows * columns
        products += rows * columns
    assert sum(work.values()) == 30 * 3_538_944
    assert printed["weight_only"] == []
    assert set(printed["calibration"]["remainders"]) == {f"model.layers.{layer}.mlp.down_proj" for layer in range(30)}
    assert products == sum(work.values()) + 30 * 1536 * 576
