"""w4: which linears get eight bits, and that a recipe says so."""

import pytest

pytest.importorskip("torch")

from piston.calibration.graph import ModelGraph
from piston.calibration.recipe import Recipe, is_narrow
from piston.runtime.errors import MisuseError


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
