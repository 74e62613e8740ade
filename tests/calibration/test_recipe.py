"""What a recipe decides by itself where nothing was said."""

import pytest

from piston.calibration.recipe import Recipe

W4 = {"scheme": "w4", "block": 128, "rounding": "gptq"}
TABLES = {"embedding": "int8", "head": "int8"}


@pytest.mark.parametrize(
    ("inputs", "filling", "twelfth"),
    [(576, 64, 48), (1024, 128, 96), (64, 64, 16), (2048, 128, 176)],
)
def test_copies_fill_blocks_or_are_a_twelfth_where_tables_are_small_too(inputs, filling, twelfth):
    assert Recipe(**W4).copies_beside(inputs) == filling
    assert (inputs + filling) % 128 == 0
    assert Recipe(**W4, **TABLES).copies_beside(inputs) == twelfth
    assert 0 <= twelfth - inputs / 12 < 16
    assert Recipe(**W4, embedding="int8").copies_beside(inputs) == filling


@pytest.mark.parametrize("wanted", [0, 16, 80])
def test_copies_that_were_asked_for_are_those(wanted):
    assert Recipe(**W4, **TABLES, split=wanted).copies_beside(576) == wanted


@pytest.mark.parametrize(("scheme", "block"), [("w4", 64), ("w8", 32), ("w8a8", 32)])
def test_scales_of_tables_are_fewer_where_weights_have_four_bits(scheme, block):
    assert Recipe(scheme=scheme, block=128 if scheme == "w4" else 0).table_block == block
