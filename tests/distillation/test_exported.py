"""A student that was trained with rounding is, exported and calibrated by its recipe, the model it was trained as."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from canonical import CanonicalSession
from checkpoints import VOCAB_SIZE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from zoo import make

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.recipe import Recipe
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.data.rows import RowOptions
from piston.distillation.distill import distill
from piston.distillation.options import DistillOptions, TrainingOptions
from piston.distillation.scheme import load_weights, read_start, round_student
from piston.distillation.sparsity import is_sparse
from piston.export import ExportOptions, export_model
from piston.graph.pattern import array_of
from piston.graph.qdq import activation_pair, quantized_weight
from piston.graph.trained_scales import TrainedScales

ANY = CheckOptions(bounds=("ppl<=1000%",))
TRAINING = TrainingOptions(steps=3, rows=2, learning_rate=1e-3, scale_rate=1e-2)
IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def w4(teacher, text, tmp_path_factory):
    """The student, its export, and what its recipe makes of that."""
    place = tmp_path_factory.mktemp("w4")
    distill(str(teacher), place / "student", [text], DistillOptions(scheme="w4", block=32, seq_len=24), TRAINING)
    export_model(place / "student", place / "model", ExportOptions(dtype="fp32", check_parity=False))
    recipe = place / "student/recipe.json"
    words = ["calibrate", str(place / "model"), "-o", str(place / "quantized"), "--recipe", str(recipe), "--quiet"]
    assert main([*words, "--check-data", str(text), "--seq-len", "24", "--require", "ppl<=0.1%"]) == 0
    return place


@pytest.fixture(scope="module")
def w8a8(toys, teacher, text, tmp_path_factory):
    """The same for w8a8, which begins from a calibration of the teacher."""
    place = tmp_path_factory.mktemp("w8a8")
    rows = RowOptions(num_rows=6, seq_len=24)
    calibrate(toys.model_dir(), place / "start", Recipe(scheme="w8a8"), [text], rows=rows, checked=ANY)
    options = DistillOptions(scheme="w8a8", start=place / "start", seq_len=24)
    gentle = TrainingOptions(steps=12, rows=2, learning_rate=1e-4, scale_rate=1e-4)
    result = distill(str(teacher), place / "student", [text], options, gentle)
    export_model(place / "student", place / "model", ExportOptions(dtype="fp32", check_parity=False))
    recipe = place / "student/recipe.json"
    words = ["calibrate", str(place / "model"), "-o", str(place / "quantized"), "--recipe", str(recipe), "--quiet"]
    assert main([*words, "--check-data", str(text), "--seq-len", "24", "--require", "ppl<=50%"]) == 0
    return place, result


def test_linears_that_share_the_scale_of_their_input_are_trained_layer_by_layer(w8a8, teacher, text, tmp_path):
    options = DistillOptions(scheme="w8a8", start=w8a8[0] / "start", seq_len=24)
    layers = TrainingOptions(steps=4, rows=2, layerwise=True, learning_rate=0.01)
    first, last = distill(str(teacher), tmp_path / "student", [text], options, layers).ends
    assert last.step == 8
    assert last.held_out.kl < 2 * first.held_out.kl


def graph_logits(directory, cache):
    """Of the graph as it is written: optimized, ONNX Runtime would round activations of weight-only linears too."""
    session, plain = CanonicalSession(directory / "model.onnx", cache, 1, len(IDS)), onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session.session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), plain, providers=["CPUExecutionProvider"]
    )
    return session.step([IDS], [range(len(IDS))], [0], [len(IDS)], [range(len(IDS))])[0]


def weights_of(directory):
    """By linear: its pair of codes and scales multiplied, and what its input is rounded by."""
    found = {}
    for node in ir.load(directory / "model.onnx").graph:
        weight = quantized_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            codes, scales = array_of(weight.codes).astype(np.float32), array_of(weight.scales)
            spread = np.repeat(scales, weight.block, axis=0)[: len(codes)] if weight.block else scales
            found[node.name.rpartition("/")[0]] = (codes * spread, activation_pair(node.inputs[0]))
    return found


def test_the_calibrated_weights_are_bit_for_bit_those_the_student_was_trained_with(w4):
    trained, found = load_file(w4 / "student/model.safetensors"), weights_of(w4 / "quantized")
    assert len(found) == 14
    for name, (weight, _) in found.items():
        assert np.array_equal(weight.T, trained[f"{name}.weight"].numpy()), name


def test_the_calibrated_graph_answers_as_the_student_in_torch(w4):
    student = AutoModelForCausalLM.from_pretrained(w4 / "student", dtype=torch.float32)
    with torch.no_grad():
        expected = student(torch.tensor([IDS])).logits[0].numpy()
    found = graph_logits(w4 / "quantized", Manifest.read(w4 / "quantized").cache)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_scales_were_trained_and_are_those_of_the_graph(w4):
    recipe = json.loads((w4 / "student/recipe.json").read_text())
    scales = TrainedScales.beside(w4 / "student/recipe.json", recipe["trained"])
    found = read_start(w4 / "quantized").roundings
    assert all(np.array_equal(scales.weights[name], rounding.scales) for name, rounding in found.items())


def test_a_recipe_without_its_scales_or_of_another_student_is_refused(w4, toys, tmp_path, capsys):
    recipe = (w4 / "student/recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(recipe)
    words = ["calibrate", str(w4 / "model"), "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(words) == 2
    assert "needs the scales it was trained with" in capsys.readouterr().err
    (tmp_path / "scales.npz").write_bytes(TrainedScales({"model.layers.0.mlp.up_proj": np.ones((1, 2))}).to_bytes())
    assert main(words) == 2
    assert "does not have the SHA-256" in capsys.readouterr().err


def test_w8a8_begins_from_its_calibration_and_comes_nearer_to_the_teacher(w8a8):
    first, last = w8a8[1].ends
    assert last.held_out.kl < first.held_out.kl < 0.1


def test_w8a8_rounds_activations_by_the_trained_scales_and_residuals(w8a8):
    place = w8a8[0]
    recipe = json.loads((place / "student/recipe.json").read_text())
    scales = TrainedScales.beside(place / "student/recipe.json", recipe["trained"])
    assert any(ratio for _, ratio in scales.inputs.values())
    found = read_start(place / "quantized").roundings
    for name, (scale, ratio) in scales.inputs.items():
        assert (found[name].read.scale, found[name].read.ratio) == (pytest.approx(scale, rel=1e-6), ratio)
    # linears that read one value share its scale
    assert len({scales.inputs[f"model.layers.0.self_attn.{kind}_proj"] for kind in "qkv"}) == 1


def test_the_student_in_torch_rounds_as_the_quantized_graph(w8a8, teacher, text, tmp_path):
    """Training steps of no size: what is exported is what was started from, through both ways."""
    place, frozen = w8a8[0], TrainingOptions(steps=1, rows=1, learning_rate=1e-30, scale_rate=0.0)
    options = DistillOptions(scheme="w8a8", start=place / "start", seq_len=24)
    result = distill(str(teacher), tmp_path / "student", [text], options, frozen)
    start, cache = read_start(place / "start"), Manifest.read(place / "start").cache
    logits = torch.from_numpy(graph_logits(place / "start", cache)).double()
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    round_student(student, start.roundings, {})
    with torch.no_grad():
        found = student(torch.tensor([IDS])).logits[0].double()
    assert float((found - logits).norm() / logits.norm()) < 1e-2
    assert result.run.step == 1


def test_zeros_of_a_sparse_start_are_kept_while_it_trains(toys, teacher, text, tmp_path):
    recipe = Recipe(scheme="fp", sparsity="2:4", pruning="magnitude")
    calibrate(toys.model_dir(), tmp_path / "start", recipe, checked=ANY)
    options = DistillOptions(start=tmp_path / "start", seq_len=24)
    result = distill(str(teacher), tmp_path / "student", [text], options, TRAINING)
    assert result.notes == ("14 linears are 2:4 sparse already; their zeros are kept.",)
    begun = read_start(tmp_path / "start").weights
    for name, value in load_file(tmp_path / "student/model.safetensors").items():
        if "_proj" in name:
            assert is_sparse(value)
            assert np.array_equal(value.numpy() == 0, begun[name].T == 0)
            assert not np.array_equal(value.numpy(), begun[name].T)


def test_a_start_with_a_tied_head_gives_every_tensor_back(toys, tmp_path):
    calibrate(toys.model_dir(tie_word_embeddings=True), tmp_path / "start", Recipe(scheme="w8"), checked=ANY)
    start, model = read_start(tmp_path / "start"), make("llama", vocab_size=VOCAB_SIZE, tie_word_embeddings=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, start, tmp_path)
    for name, value in model.state_dict().items():
        steps = 127 if "_proj" in name else 1e9  # half a code of the largest weight
        assert float((value - before[name]).abs().max()) <= float(before[name].abs().max()) / steps


def test_a_start_of_another_teacher_is_refused_before_it_is_trained(toys, teacher, text, tmp_path):
    def negate(model):
        model.lm_head.weight.mul_(-3)

    calibrate(toys.model_dir(edit=negate), tmp_path / "start", Recipe(scheme="w8"), checked=ANY)
    options = DistillOptions(scheme="w8", start=tmp_path / "start", seq_len=24)
    with pytest.raises(MisuseError, match=r"nats from the teacher; calibrate this teacher"):
        distill(str(teacher), tmp_path / "student", [text], options, TRAINING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "w8a8"}, "give --start DIR"),
        ({"scheme": "fp", "block": 32}, "--block is for a student that rounds"),
        ({"scheme": "w5"}, "No scheme 'w5'"),
    ],
)
def test_options_that_say_nothing_are_refused(options, message):
    with pytest.raises(MisuseError, match=message):
        DistillOptions(**options)
