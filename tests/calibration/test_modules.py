"""Modules of one's own in INT8: the oracle is the torch module, its weights rounded by hand where that is exact."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from modules import QUANTIZABLE, ConvNet, Perceptron, Scorer, example, normal
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from piston.calibration.calibrate import CheckOptions, calibrate
from piston.calibration.recipe import Recipe
from piston.cli.main import main
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError, ShortfallError
from piston.data.rows import RowOptions
from piston.engines import build
from piston.export import export_module
from piston.runtime import load
from piston.runtime.backends.session import OrtSession


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories by name, each beside its data.npz."""
    root = tmp_path_factory.mktemp("modules")
    for name, (module, given, shapes) in QUANTIZABLE.items():
        export_module(module(), given, root / name / "model", dynamic_shapes=shapes)
        arrays = {key: normal(100, *tensor.shape[1:], seed=7).numpy() for key, tensor in given.items()}
        np.savez(root / name / "data.npz", **arrays)
    return root


def answers(directory, out, given):
    build(directory, out)
    with load(out) as model:
        return next(iter(model.run(given).values()))


LAYERS = {"perceptron": ["first", "head", "second"], "convolutions": ["first", "head", "second"]}


def rounded(module):
    """The module with each weight rounded to 127 steps of its output channel's largest, norms folded in before."""
    if hasattr(module, "norm"):
        module.first = fuse_conv_bn_eval(module.eval().first, module.norm)
        module.norm = nn.Identity()
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            weight = part.weight.data
            scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / 127
            part.weight.data = (weight / scale).round() * scale
    return module.eval()


@pytest.mark.parametrize(("name", "module"), [("perceptron", Perceptron), ("convolutions", ConvNet)])
def test_w8_computes_what_the_module_with_rounded_weights_does(models, name, module, tmp_path):
    result = calibrate(models / name / "model", tmp_path / "w8", Recipe(scheme="w8"))
    assert sorted(result.quantized) == LAYERS[name]
    (key,) = QUANTIZABLE[name][1]
    given = {key: normal(5, *QUANTIZABLE[name][1][key].shape[1:], seed=11)}
    with torch.no_grad():
        expected = rounded(module())(**given)
    expected = expected["scores"] if isinstance(expected, dict) else expected
    arrays = {key: given[key].numpy()}
    session = OrtSession.open(tmp_path / "w8" / GRAPH, result.manifest.graphs[MODULE])
    np.testing.assert_allclose(next(iter(session.run(arrays).values())), expected.numpy(), atol=1e-5)
    # The engine's MatMulNBits rounds activations besides.
    found = answers(tmp_path / "w8", tmp_path / "bundle", arrays)
    assert np.linalg.norm(found - expected.numpy()) < 0.02 * np.linalg.norm(expected.numpy())


@pytest.mark.parametrize(("name", "module"), [("perceptron", Perceptron), ("convolutions", ConvNet)])
def test_w8a8_rounds_what_every_layer_reads_and_stays_near_the_module(models, name, module, tmp_path):
    data = models / name / "data.npz"
    result = calibrate(models / name / "model", tmp_path / "w8a8", Recipe(scheme="w8a8"), [data])
    assert sorted(result.quantized) == LAYERS[name]
    graph = ir.load(tmp_path / "w8a8/model.onnx").graph
    layers = [node for node in graph if node.op_type in {"MatMul", "Conv"}]
    assert layers
    for node in layers:
        assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
    (key,) = QUANTIZABLE[name][1]
    given = {key: normal(64, *QUANTIZABLE[name][1][key].shape[1:], seed=13)}
    with torch.no_grad():
        expected = module().eval()(**given)
    expected = (expected["scores"] if isinstance(expected, dict) else expected).numpy()
    found = answers(tmp_path / "w8a8", tmp_path / "bundle", {key: given[key].numpy()})
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.05
    assert result.check.comparison.values["error"] < 0.05
    assert main(["verify", str(tmp_path / "bundle"), "--quiet"]) == 0
    assert Manifest.read(tmp_path / "bundle").engines[0].actual["not_fused"] == {}


def test_linears_of_a_perceptron_multiply_in_int8(models, tmp_path):
    calibrate(models / "perceptron/model", tmp_path / "w8a8", Recipe(scheme="w8a8"), [models / "perceptron/data.npz"])
    manifest = build(tmp_path / "w8a8", tmp_path / "bundle", require_int8=1.0)
    assert manifest.engines[0].actual["not_fused"] == {}
    assert manifest.engines[0].actual["linears"]["int8"] == 1


def test_layers_that_are_kept_are_as_they_were(models, tmp_path):
    recipe = Recipe(scheme="w8", keep=("first", "head"))
    result = calibrate(models / "convolutions/model", tmp_path / "w8", recipe)
    assert (result.quantized, result.kept) == (["second"], ["head", "first"])
    with pytest.raises(MisuseError, match="'third' names no linear; they are called as head"):
        calibrate(models / "convolutions/model", tmp_path / "no", Recipe(scheme="w8", keep=("third",)))


def test_a_bound_that_is_not_met_writes_nothing(models, tmp_path):
    with pytest.raises(ShortfallError, match=r"error.*outputs moved by"):
        calibrate(
            models / "perceptron/model",
            tmp_path / "w8a8",
            Recipe(scheme="w8a8"),
            [models / "perceptron/data.npz"],
            checked=CheckOptions(bounds=("error<=0.001%",)),
        )
    assert not (tmp_path / "w8a8").exists()


def test_several_inputs_and_stacked_samples(tmp_path):
    export_module(Scorer(), example(), tmp_path / "model", dynamic_shapes={"signal": {2: "time"}})
    arrays = {"signal": normal(20, 2, 3, 9).numpy(), "kind": np.arange(40).reshape(20, 2) % 10}
    np.savez(tmp_path / "stacked.npz", **arrays)
    result = calibrate(tmp_path / "model", tmp_path / "w8a8", Recipe(scheme="w8a8"), [tmp_path / "stacked.npz"])
    assert result.manifest.made_by["calibration"]["data"]["rows"] == 16  # four of twenty are kept apart
    assert {"error", "cosine", "agreement"} == set(result.check.comparison.values)


@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        ({"x": np.zeros((9, 11), np.float32)}, None, r"data.npz: x is \[9, 11\]; it must be \[batch = 9, 12\]"),
        ({"x": np.zeros((9, 12))}, None, "'x' is float64; it must be float32"),
        ({"y": np.zeros((9, 12), np.float32)}, None, "'x' is missing"),
        ({"x": np.zeros((1, 12), np.float32)}, None, "holds 1 sample, and some are kept apart"),
        ({"x": np.zeros((9, 12), np.float32)}, RowOptions(seq_len=4), "--seq-len is for text"),
    ],
)
def test_data_that_does_not_fit_is_refused(models, arrays, options, reason, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(MisuseError, match=reason):
        calibrate(
            models / "perceptron/model",
            tmp_path / "out",
            Recipe(scheme="w8a8"),
            [tmp_path / "data.npz"],
            rows=options,
        )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--scheme", "w8a8"], "needs data: give --data FILE.npz"),
        (["--scheme", "w8a8", "--data", "builtin"], "a module is calibrated on arrays"),
        (["--scheme", "w4"], "--rounding gptq is for models of transformers"),
        (["--scheme", "w8", "--sparsity", "2:4"], "--pruning sparsegpt is for models of transformers"),
        (["--scheme", "w8a8", "--data", "{data}", "--budget", "kl<=1"], "--budget is for language models"),
    ],
)
def test_what_needs_a_language_model_is_refused(models, words, reason, tmp_path, capsys):
    filled = [word.format(data=models / "perceptron/data.npz") for word in words]
    assert main(["calibrate", str(models / "perceptron/model"), "-o", str(tmp_path / "out"), "--quiet", *filled]) == 2
    assert reason in capsys.readouterr().err


def test_the_command_reports_what_it_measured(models, tmp_path, capsys):
    words = ["calibrate", str(models / "convolutions/model"), "-o", str(tmp_path / "out"), "--scheme", "w8a8"]
    words += ["--data", str(models / "convolutions/data.npz"), "--require", "cosine>=0.99", "--quiet", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["check"]["values"]["cosine"] > 0.99
    assert printed["size"]["actual"] < 0.7 * printed["size"]["whole"]  # scales count much in a small model


def test_a_module_without_layers_is_refused(tmp_path):
    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    export_module(Doubled(), {"x": torch.ones(2, 3)}, tmp_path / "model")
    with pytest.raises(MisuseError, match="no linear layer and no convolution"):
        calibrate(tmp_path / "model", tmp_path / "out", Recipe(scheme="w8"))


@pytest.mark.parametrize(("option", "what"), [("head", "lm_head"), ("embedding", "embedding of token ids")])
def test_tables_in_int8_that_the_module_does_not_have_are_refused(models, tmp_path, option, what):
    recipe = Recipe(scheme="w8", **{option: "int8"})
    with pytest.raises(
        MisuseError, match=rf"The model has no {what} that --{option} int8 could quantize; leave it out"
    ):
        calibrate(models / "perceptron/model", tmp_path / "out", recipe)


def test_arrays_that_nothing_reads_are_refused_with_a_remedy_that_modules_have(models, tmp_path):
    with pytest.raises(MisuseError, match=r"reads no arrays; leave --data out, or give the arrays .* --check-data"):
        calibrate(models / "perceptron/model", tmp_path / "out", Recipe(scheme="w8"), [models / "perceptron/data.npz"])


def test_a_layer_of_a_module_is_quantized_whatever_it_is_called(tmp_path):
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.proj_out = nn.Linear(12, 8)

        def forward(self, x):
            return torch.relu(self.proj_out(x))

    export_module(Projected(), {"x": normal(2, 12)}, tmp_path / "model")
    assert calibrate(tmp_path / "model", tmp_path / "w8", Recipe(scheme="w8")).quantized == ["proj_out"]
