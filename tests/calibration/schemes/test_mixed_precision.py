"""w4: which linears get eight bits, and that a recipe says so."""

from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from piston.calibration import calibrate as calibrating
from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe, is_narrow
from piston.calibration.schemes.mixed_precision import usual_int8
from piston.core.errors import MisuseError


@pytest.fixture
def linears(model_dir):
    return ModelGraph.open(model_dir).linears


def bits_of(recipe, linears):
    return {
        linear.name.rpartition(".")[2]: recipe.grid_of(linear).bits for linear in linears if "layers" in linear.name
    }


def test_nobody_is_narrow_where_two_query_heads_share_a_key(linears):
    """64 inputs, 32 outputs; SmolLM2 has 576 and 192."""
    assert not any(is_narrow(linear) for linear in linears)
    assert set(bits_of(Recipe(scheme="w4", block=32), linears).values()) == {4}


def deep(num_layers, producer="Mul"):
    """Layers of a fused product, a narrow projection and one behind an activation function."""
    kinds = [
        ("wide", (8, 24), "RMSNormalization"),
        ("narrow", (8, 2), "RMSNormalization"),
        ("down", (24, 12), producer),
    ]
    return [
        SimpleNamespace(
            name=f"{layer}.{name}",
            shape=shape,
            is_transposed=False,
            input=SimpleNamespace(producer=partial(SimpleNamespace, op_type=op_type)),
        )
        for layer in range(num_layers)
        for name, shape, op_type in kinds
    ]


@pytest.mark.parametrize(("num_layers", "ends"), [(9, []), (10, [0, 9]), (30, [0, 1, 2, 27, 28, 29])])
def test_the_narrow_ones_and_what_is_behind_activations_at_both_ends_get_eight_bits(num_layers, ends):
    narrow = {f"{layer}.narrow" for layer in range(num_layers)}
    assert set(usual_int8(deep(num_layers))) == narrow | {f"{layer}.down" for layer in ends}


def test_what_reads_a_norm_is_not_behind_an_activation():
    assert set(usual_int8(deep(30, "RMSNormalization"))) == {f"{layer}.narrow" for layer in range(30)}


def test_a_calibration_settles_which_they_are(model_dir, tmp_path):
    """So that it can be replayed should the usual ones ever be others."""
    result = calibrate(
        model_dir, tmp_path / "out", Recipe(scheme="w4", block=32), checked=CheckOptions(bounds=("kl<=9",))
    )
    assert result.recipe.int8 == usual_int8(ModelGraph.open(model_dir).linears)


def test_a_recipe_that_was_settled_before_names_none_and_keeps_its_narrow_ones(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrating, "usual_int8", lambda linears: tuple(linear.name for linear in linears))
    settled = Recipe(scheme="w4", block=32, model=ModelGraph.open(model_dir).sha256)
    result = calibrate(model_dir, tmp_path / "out", settled, checked=CheckOptions(bounds=("kl<=9",)))
    assert result.recipe.int8 is None


def test_named_linears_and_no_others_get_eight_bits(linears):
    bits = bits_of(Recipe(scheme="w4", block=32, int8=("*.v_proj", "*.0.*o_proj")), linears)
    assert bits == dict.fromkeys(("q_proj", "k_proj", "gate_proj", "up_proj", "down_proj", "o_proj"), 4) | {"v_proj": 8}


def test_a_pattern_that_names_nothing_is_refused(linears):
    with pytest.raises(MisuseError, match="--int8 'nobody' names no linear"):
        Recipe(scheme="w4", block=32, int8=("nobody",)).chosen(linears)


def test_eight_bits_are_for_w4_alone():
    with pytest.raises(MisuseError, match="w8 has no others"):
        Recipe(scheme="w8", int8=("*",))


@pytest.mark.parametrize("int8", [None, (), ("*.v_proj",)])
def test_it_survives_a_file(int8):
    recipe = Recipe(scheme="w4", block=64, int8=int8, embedding="int8", head="int8")
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_storage_nobody_knows_is_refused():
    with pytest.raises(MisuseError, match="'int7'"):
        Recipe(scheme="w8", embedding="int7")
