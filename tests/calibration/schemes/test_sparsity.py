"""2:4 sparsity: which weights become zero, what that costs, and that the zeros reach every engine."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.gptq import Hessian, damped, gptq, inverse_factor
from piston.calibration.schemes.sparsity import check_rows, masked, sparse_gpt
from piston.calibration.verdict import verdict_of
from piston.core.errors import CalibrationError, MisuseError
from piston.data.rows import RowOptions
from piston.engines import build
from piston.evaluation.tasks import text_generation
from piston.graph.rounding import Grid
from piston.graph.sparsity import is_sparse, sparse_matmuls

PROSE = Path(__file__).parents[3] / "data/texts/prose.txt"
ROWS = RowOptions(num_rows=6, seq_len=24)
ANY = CheckOptions(bounds=("ppl<=1000%",))
RECIPES = {
    "fp": Recipe(scheme="fp", sparsity="2:4"),
    "w8": Recipe(scheme="w8", sparsity="2:4"),
    "w4": Recipe(scheme="w4", block=32, rounding="gptq", sparsity="2:4"),
    "w8a8": Recipe(scheme="w8a8", sparsity="2:4"),
}


def problem(seed=0, inputs=32, outputs=24):
    """A weight and correlated inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inputs, outputs)).astype(np.float32)
    mixed = rng.standard_normal((400, inputs)) @ rng.standard_normal((inputs, inputs))
    return weight, mixed.T @ mixed


def cost(weight, sparse, gram):
    change = (weight - sparse).astype(np.float64)
    return np.einsum("kn,kn->", change, gram @ change)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(PROSE.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sparse_models(toys, text, tmp_path_factory):
    place = tmp_path_factory.mktemp("sparse")
    return {
        name: (place / name, calibrate(toys.model_dir(), place / name, recipe, [text], rows=ROWS, checked=ANY))
        for name, recipe in RECIPES.items()
    }


class Named:
    name = "model.layers.0.mlp.up_proj"


def test_two_of_every_four_inputs_are_zero_by_either_way():
    weight, gram = problem()
    assert is_sparse(sparse_gpt(weight, inverse_factor(damped(gram))))
    assert is_sparse(masked(Named, weight))
    assert not is_sparse(weight)


def test_magnitude_removes_the_two_smallest():
    weight = np.array([[1], [-4], [3], [2]], np.float32)
    assert masked(Named, weight).ravel().tolist() == [0, -4, 3, 0]


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_makes_up_for_a_quarter_or_more_of_what_magnitude_costs_the_output(seed):
    weight, gram = problem(seed)
    sparse = sparse_gpt(weight, inverse_factor(damped(gram)))
    assert cost(weight, sparse, gram) < 0.75 * cost(weight, masked(Named, weight), gram)


def test_with_inputs_that_are_not_correlated_sparsegpt_is_magnitude():
    weight, _ = problem()
    assert np.allclose(sparse_gpt(weight, inverse_factor(damped(np.eye(32)))), masked(Named, weight))


def test_gptq_leaves_zeros_where_they_are():
    weight, gram = problem()
    sparse = sparse_gpt(weight, inverse_factor(damped(gram)))
    quantized = gptq(sparse, Hessian(gram), Grid(4, 16), stays=sparse != 0)
    assert is_sparse(quantized.codes)
    assert not quantized.codes[sparse == 0].any()


def test_a_mask_that_leaves_an_output_empty_is_refused_by_name():
    weight = np.ones((4, 3), np.float32)
    sparse = weight * np.array([[1, 0, 1]], np.float32)
    with pytest.raises(CalibrationError, match=r"output 1 of model.layers.0.mlp.up_proj without weights.*--dense"):
        check_rows(Named.name, weight, sparse)
    weight[:, 1] = 0  # a dead output loses nothing
    check_rows(Named.name, weight, sparse)


@pytest.mark.parametrize("name", RECIPES)
def test_every_linear_of_the_written_graph_is_sparse(sparse_models, name):
    directory, result = sparse_models[name]
    found = sparse_matmuls(ir.load(directory / "model.onnx").graph)
    linears = {key: value for key, value in found.items() if not key.startswith("lm_head")}
    assert len(linears) >= 14
    assert all(linears.values())
    assert len(result.manifest.made_by["calibration"]["sparse"]) == 14


def test_dense_names_linears_that_stay_as_they_are(toys, text, tmp_path):
    recipe = Recipe(scheme="w8", sparsity="2:4", pruning="magnitude", dense=("*.down_proj",))
    result = calibrate(toys.model_dir(), tmp_path / "out", recipe, checked=ANY, rows=ROWS)
    sparse = result.manifest.made_by["calibration"]["sparse"]
    assert len(sparse) == 12
    assert not any("down_proj" in name for name in sparse)


@pytest.mark.parametrize("name", ["fp", "w8", "w4", "w8a8"])
def test_zeros_survive_the_lowering_of_ort_cpu(sparse_models, name, tmp_path):
    directory, _ = sparse_models[name]
    build(directory, tmp_path / "bundle", ("ort-cpu",), max_length=48)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    sparse = manifest["engines"][0]["actual"]["sparse"]
    assert sparse["share"] == 1  # query, key and value may be one matrix, so layers are fewer than 14
    assert 8 <= sparse["layers"] <= 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": ("*.q_proj",)}, "add --sparsity 2:4"),
        ({"pruning": "magnitude"}, "add --sparsity 2:4"),
        ({"sparsity": "1:4"}, "No sparsity '1:4'"),
        ({"sparsity": "2:4", "rounding": "awq"}, "leave --rounding awq out"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(MisuseError, match=message):
        Recipe(**{"scheme": "w8", **changes})


def test_a_pattern_that_names_no_linear_is_refused(toys):
    recipe = Recipe(scheme="w8", sparsity="2:4", dense=("nothing",))
    with pytest.raises(MisuseError, match="'nothing' names no linear"):
        recipe.sparse(ModelGraph.open(toys.model_dir()).linears)


def test_the_verdict_says_that_zeros_alone_save_nothing_and_fewer_bits_do(sparse_models):
    zeros, bits = (verdict_of(sparse_models[name][1]) for name in ("fp", "w4"))
    assert (zeros.is_worth_it, bits.is_worth_it) == (False, True)
    assert zeros.lines[3].startswith("verdict: not worth it, 0% fewer bytes for")
    assert zeros.lines[1].split()[0] == "float"
    assert "2:4 zeros take as many bytes as other weights in float" in zeros.lines[-1]
    assert "--target ort-cpu:avx512 stores 5/8 of the bytes of INT8 weights and 3/4 of INT4's" in bits.lines[-1]
    whole = (sparse_models["w4"][0].parent / "fp/model.onnx.data").stat().st_size
    assert bits.saved == pytest.approx(1 - bits_size(sparse_models["w4"][0]) / whole, abs=0.01)


def test_the_verdict_is_not_worth_it_beyond_the_schemes_default_limit_whatever_was_allowed(sparse_models, monkeypatch):
    result = sparse_models["w8"][1]
    assert verdict_of(result).is_worth_it
    monkeypatch.setitem(text_generation.DEFAULTS, "w8", "kl<=0.0001")
    found = verdict_of(result)
    assert not found.is_worth_it
    assert found.lines[3].startswith("verdict: not worth it, 46% fewer bytes for ")
    assert found.lines[3].endswith(", beyond the default limit of w8 (kl<=0.0001)")


def test_the_verdict_is_not_worth_it_where_the_limit_is_missed_far_beyond_the_calibrated_rows_alone(sparse_models):
    result = sparse_models["w8"][1]
    agreement = result.check.near.agreement
    doubled = dataclasses.replace(
        agreement, perplexity_ratio=dataclasses.replace(agreement.perplexity_ratio, value=2.0)
    )
    far = dataclasses.replace(result.check.near, agreement=doubled)
    found = verdict_of(dataclasses.replace(result, check=dataclasses.replace(result.check, far=far)))
    assert not found.is_worth_it
    assert found.lines[3].endswith(", beyond the default limit of w8 (ppl<=2%)")


def bits_size(directory):
    return (directory / "model.onnx.data").stat().st_size
