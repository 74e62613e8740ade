"""What linears cost alone: the floor is not their doing, and what counts is the cost by multiply-add."""

from types import SimpleNamespace

import numpy as np
import pytest

from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.sensitivity import CANDIDATES, SoloSensitivity, few, most_sensitive
from piston.core.console import Progress

FLOOR = 0.0125
KL = {"a": 0.04, "b": 0.03, "c": 0.02, "d": 0.01, "e": 0.09}
SIZES = {"a": (10, 10), "b": (2, 2), "c": (1, 10), "d": (10, 10), "e": (1, 1)}  # [inputs, outputs]
ROWS = np.zeros((2, 8), np.int64)


class Meter:
    """Harm adds up, over a floor; the float models of a text are the same."""

    def __init__(self):
        self.passes = []

    def figures(self, names, rows):
        assert rows is ROWS
        self.passes.append(tuple(names))
        return {"kl": FLOOR + sum(KL[name] for name in names)}


def ranked(count, known="abcde", weights=None):
    meter = Meter()
    prepared = Prepared(weights=dict.fromkeys(known), errors=dict.fromkeys("abcde", 1.0))
    weights = weights or {}
    linears = [SimpleNamespace(name=name, shape=SIZES[name], weight=weights.get(name, name)) for name in SIZES]
    return most_sensitive(meter, prepared, linears, ROWS, count, Progress(quiet=True)), meter.passes


def test_what_is_there_without_any_linear_in_integers_is_taken_off():
    meter = Meter()
    alone = SoloSensitivity(meter, ROWS)
    assert alone.floor == FLOOR
    assert alone.cost_alone(["a", "c"]) == pytest.approx(0.06)
    assert meter.passes == [(), ("a", "c")]


def test_a_floor_that_is_known_is_not_measured_again():
    meter = Meter()
    assert SoloSensitivity(meter, ROWS, floor=0.03).cost_alone(["a"]) == pytest.approx(FLOOR + 0.04 - 0.03)
    assert meter.passes == [("a",)]


def test_a_linear_that_costs_less_than_nothing_costs_nothing():
    assert SoloSensitivity(Meter(), ROWS, floor=1.0).cost_alone(["a"]) == 0


def test_linears_that_share_a_weight_are_measured_together_and_count_as_one():
    cost_alone, passes = ranked(1, weights={"d": "a"})  # a and d are runs of one module
    assert passes == [(), ("a", "d"), ("b",), ("c",)]
    assert list(cost_alone) == ["b", "c", "a"]
    assert cost_alone["a"] == pytest.approx(KL["a"] + KL["d"])


def test_the_worst_come_first_by_multiply_add():
    cost_alone, passes = ranked(2)
    assert list(cost_alone) == ["e", "b", "c", "a", "d"]
    assert cost_alone["a"] == pytest.approx(KL["a"])
    assert passes == [(), *((name,) for name in "abcde")]


def test_only_the_linears_with_the_largest_errors_are_measured():
    cost_alone, passes = ranked(1)
    assert list(cost_alone) == ["b", "c", "a"]
    assert len(passes) == 1 + CANDIDATES


def test_linears_that_the_recipe_keeps_are_not_ranked():
    assert list(ranked(1, known="bcde")[0]) == ["b", "c", "d"]


def test_few_rows_are_short():
    assert few(np.zeros((64, 512), np.int64)).shape == (2, 128)
    assert few(np.zeros((1, 24), np.int64)).shape == (1, 24)
