"""What a recipe decides by itself where nothing was said."""

import pytest

from piston.calibration.recipe import Recipe

W4 = {"scheme": "w4", "block": 128, "rounding": "gptq"}
TABLES = {"embedding": "int8", "head": "int8"}


@pytest.mark.parametrize(("inputs", "filling"), [(576, 64), (1024, 128), (64, 64), (2048, 128)])
def test_copies_fill_blocks_and_tile_registers(inputs, filling):
    assert Recipe(**W4).copies_beside(inputs) == Recipe(**W4, **TABLES).copies_beside(inputs) == filling
    assert (inputs + filling) % 128 == 0
    narrow = Recipe(scheme="w8", block=32, rounding="gptq").copies_beside(inputs)
    assert (inputs + narrow) % 64 == 0
    assert narrow * 32 >= inputs


def test_a_recipe_settled_before_there_were_remainders_has_none():
    settled = Recipe(scheme="w8a8", model="0" * 64).to_json()
    assert Recipe.from_json(settled).remainder
    del settled["remainder"]
    assert not Recipe.from_json(settled).remainder
    assert Recipe.from_json({"scheme": "w8a8"}).remainder


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_a_recipe_of_weights_alone_settled_before_there_were_remainders_is_read(scheme):
    recipe = Recipe(scheme=scheme, block=128, model="0" * 64)
    settled = recipe.to_json()
    del settled["remainder"]
    assert Recipe.from_json(settled) == recipe


@pytest.mark.parametrize("wanted", [0, 16, 80])
def test_copies_that_were_asked_for_are_those(wanted):
    assert Recipe(**W4, **TABLES, split=wanted).copies_beside(576) == wanted


@pytest.mark.parametrize(("scheme", "block"), [("w4", 64), ("w8", 32), ("w8a8", 32)])
def test_scales_of_tables_are_fewer_where_weights_have_four_bits(scheme, block):
    assert Recipe(scheme=scheme, block=128 if scheme == "w4" else 0).table_block == block


def test_a_recipe_names_the_data_that_differs_from_what_it_was_made_with():
    recipe = Recipe(scheme="w8a8", data={"a.txt": "1", "Python 3.11.7, source of csv": "2", "c.txt": "3"})
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.data_warning(recipe.data) is None
    assert Recipe(scheme="w8a8").data_warning(recipe.data) is None
    found = recipe.data_warning({"a.txt": "1", "Python 3.12.1, source of csv": "4", "c.txt": "5", "d.txt": "6"})
    assert found == (
        "warning: the recipe was made with other calibration data, so the result may differ: "
        "Python 3.11.7, source of csv; c.txt; Python 3.12.1, source of csv and 1 more."
    )


def test_a_recipe_with_the_former_name_of_what_is_kept_in_float_is_read():
    assert Recipe.from_json({"scheme": "w8", "spared": ["a.b"]}) == Recipe(scheme="w8", kept_in_float=("a.b",))
