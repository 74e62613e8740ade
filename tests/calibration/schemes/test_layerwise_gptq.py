"""Layers are rounded for what the quantized layers before them give, and make up for it."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from piston.calibration.float_graph import ModelGraph
from piston.calibration.observe.collect import collect
from piston.calibration.observe.consumers import Gram
from piston.calibration.recipe import Recipe
from piston.calibration.schemes import layerwise_gptq as sequential
from piston.calibration.schemes.channel_splitting import num_copies
from piston.calibration.schemes.gptq import Hessian, damped, gptq
from piston.calibration.schemes.layerwise_gptq import InputSums, every_of, round_in_turn, split_inputs
from piston.calibration.schemes.w8a8 import weight_of
from piston.core.console import Progress
from piston.core.errors import CalibrationError
from piston.graph.rounding import Grid

ROWS = np.random.default_rng(0).integers(3, 131, (12, 40))
RECIPE = Recipe(scheme="w4", block=32, rounding="gptq")


@pytest.mark.parametrize("width", [3, 40])  # narrow, and wide
def test_corrected_weights_are_those_of_ridge_regression(width):
    """The least squares of [X; sqrt(ridge)] W = [Y W; sqrt(ridge) W], solved by numpy; X of length one, Y as X."""
    rng = np.random.default_rng(0)
    given, weight = rng.normal(size=(200, 8)), rng.normal(size=(8, width))
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    exact = given + 0.1 * rng.normal(size=(200, 8))
    sums = sums_of(exact[None].astype(np.float32), given[None].astype(np.float32), weight.astype(np.float32))
    ridge = np.sqrt(damped(sums.gram)[0, 0] - sums.gram[0, 0]) * np.eye(8)
    expected = np.linalg.lstsq(
        np.concatenate([given, ridge]), np.concatenate([exact @ weight, ridge @ weight]), rcond=None
    )[0]
    assert np.abs(expected - weight).max() > 0.05
    assert np.abs(weight + sums.missing(Hessian(sums.gram)) - expected).max() < 1e-4


def sums_of(exact, given, weight):
    sums = InputSums("x", weight)
    for parts in zip(exact, given, strict=True):
        sums.update(*(part[None] for part in parts))
    return sums


def parts_of(sums):
    return sums.gram, sums.missing(Hessian(sums.gram))


# Twice as narrow as its inputs are many, W is multiplied with each token; else with the sum.
@pytest.mark.parametrize("width", [2, 3, 40])
def test_sums_are_those_of_all_tokens_brought_to_length_one(width, monkeypatch):
    monkeypatch.setattr(sequential, "AT_ONCE", 16)  # rows of 9 fill it once and leave a rest
    rng = np.random.default_rng(0)
    exact, given = rng.normal(size=(2, 5, 9, 6)).astype(np.float32)
    weight = rng.normal(size=(6, width)).astype(np.float32)
    sums = sums_of(exact, given, weight)
    lengths = np.linalg.norm(given.astype(np.float64), axis=-1, keepdims=True)
    x, y = ((part / lengths).reshape(-1, 6) for part in (given, exact))
    assert np.allclose(sums.gram, x.T @ x, atol=1e-5)
    missing = np.linalg.solve(damped(x.T @ x), x.T @ (y - x) @ weight)
    assert np.allclose(sums.missing(Hessian(sums.gram)), missing, atol=1e-4)


def test_of_many_tokens_every_second_of_a_row_is_summed_and_of_the_next_row_the_others():
    assert [every_of(tokens, 6) for tokens in (119, 120, 10_000)] == [1, 2, 2]
    rng = np.random.default_rng(0)
    exact, given = rng.normal(size=(2, 5, 9, 6)).astype(np.float32)
    weight = rng.normal(size=(6, 4)).astype(np.float32)
    half = InputSums("x", weight, every=2)
    for row in range(5):
        half.update(exact[row][None], given[row][None])
    chosen = [(exact[row, row % 2 :: 2], given[row, row % 2 :: 2]) for row in range(5)]
    for found, expected in zip(parts_of(half), parts_of(sums_of(*zip(*chosen, strict=True), weight)), strict=True):
        assert np.allclose(found, expected, atol=1e-5)


def test_a_row_longer_than_what_is_kept_is_taken_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    exact, given = rng.normal(size=(2, 3, 50, 4)).astype(np.float32)
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    whole = parts_of(sums_of(exact, given, weight))
    monkeypatch.setattr(sequential, "AT_ONCE", 16)
    for one, other in zip(whole, parts_of(sums_of(exact, given, weight)), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_sums_count_every_token_alike_and_refuse_what_is_not_finite():
    rng = np.random.default_rng(0)
    exact, given = rng.normal(size=(2, 1, 9, 5)).astype(np.float32)
    weight = rng.normal(size=(5, 3)).astype(np.float32)
    stretch = np.linspace(1, 1000, 9, dtype=np.float32)[None, :, None]
    found, longer = (parts_of(sums_of(exact * by, given * by, weight)) for by in (1, stretch))
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(found, longer, strict=True))
    with pytest.raises(CalibrationError, match="x has 1 of 45"):
        sums_of(exact, np.where(given == given.max(), np.nan, given), weight)


def test_the_first_layer_has_nothing_to_make_up_for(model_dir, tmp_path):
    prepared = round_in_turn(ModelGraph.open(model_dir), RECIPE, ROWS, tmp_path, Progress(quiet=True))
    value, group = next(iter(ModelGraph.open(model_dir).groups().items()))
    gram = Gram(value, unit_tokens=True)
    collect(model_dir, ROWS, {value: gram})
    source = split_inputs(group, gram.matrix, RECIPE)
    factors = num_copies(source)[source]
    alone = gptq(
        weight_of(group[0])[source],
        Hessian(gram.matrix[np.ix_(source, source)] / np.outer(factors, factors)),
        Grid(4, 32),
    )
    assert (alone.codes != prepared.weights[group[0].name].codes).mean() < 0.01


def test_named_linears_get_eight_bits(model_dir, tmp_path):
    graph = ModelGraph.open(model_dir)
    recipe = Recipe(scheme="w4", block=32, rounding="gptq", int8=("*.v_proj",))
    weights = round_in_turn(graph, recipe, ROWS, tmp_path, Progress(quiet=True)).weights
    assert all((weights[name].grid.bits == 8) == name.endswith("v_proj") for name in weights)
    assert len(weights) == 14


def last_values(graph, rows, directory):
    """What the last linears of the layers read, of a model whose weights are these."""
    graph.save_float(directory)
    name = list(graph.groups())[-1]
    sums = Kept()
    collect(directory, rows, {name: sums})
    return np.concatenate(sums.arrays)


class Kept:
    kind = "kept"

    def __init__(self):
        self.arrays = []

    def update(self, array):
        self.arrays.append(array.copy())

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_the_last_layer_is_nearer_than_if_each_had_been_rounded_alone(model_dir, tmp_path):
    """On rows that were not calibrated with."""
    rows = np.random.default_rng(1).integers(3, 131, (6, 40))
    calibrated = np.random.default_rng(0).integers(3, 131, (24, 60))
    exact = last_values(ModelGraph.open(model_dir), rows, tmp_path / "float")
    turned, graph = (ModelGraph.open(model_dir) for _ in range(2))
    in_turn = round_in_turn(turned, RECIPE, calibrated, tmp_path, Progress(quiet=True)).weights
    grams = {name: Gram(name, unit_tokens=True) for name in graph.groups()}
    collect(model_dir, calibrated, grams)
    alone = {
        linear.name: gptq(weight_of(linear), Hessian(grams[linear.input_name].matrix), RECIPE.grid)
        for group in graph.groups().values()
        for linear in group
    }
    errors = {}
    for name, rounded, weights in (("in turn", turned, in_turn), ("alone", graph, alone)):
        for group in rounded.groups().values():
            for linear in group:
                array = weights[linear.name].dequantized()
                linear.weight.const_value = ir.tensor(array, name=linear.weight.name)
        errors[name] = np.square(last_values(rounded, rows, tmp_path / name) - exact).mean()
    assert errors["in turn"] < 0.95 * errors["alone"]


def norms_of(graph):
    nodes = [node for node in graph.model.graph if node.op_type == "RMSNormalization"]
    return {node.outputs[0].name: node.inputs[1].const_value.numpy() for node in nodes}


def test_large_inputs_are_split_behind_norms_and_the_float_model_stays_as_it_was(model_dir, tmp_path):
    graph, before = ModelGraph.open(model_dir), ModelGraph.open(model_dir)
    exact = last_values(before, ROWS, tmp_path / "before")
    round_in_turn(graph, RECIPE, ROWS, tmp_path / "work", Progress(quiet=True))
    assert np.abs(last_values(graph, ROWS, tmp_path / "after") - exact).max() < 1e-4 * np.abs(exact).max()
    changed = [name for name, gain in norms_of(graph).items() if not np.array_equal(gain, norms_of(before)[name])]
    assert len(changed) == 4  # two in each layer; the last norm feeds lm_head, which is not rounded
    inputs = {name: linear.shape[0] for linear in graph.linears[:7] if (name := linear.name.rpartition(".")[2])}
    behind_norms = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 128)
    assert inputs == {**behind_norms, "o_proj": 64, "down_proj": 112}


@pytest.mark.parametrize(("tables", "copies"), [((), 128), (("head",), 128), (("embedding", "head"), 64)])
def test_linears_beside_eight_bit_ones_get_no_copies_where_both_tables_are_int8(model_dir, tables, copies):
    """Unless copies are asked for; w8, all of whose linears have eight bits, keeps its copies."""
    groups = list(ModelGraph.open(model_dir).groups().values())
    small = dict.fromkeys(tables, "int8")
    recipe = dataclasses.replace(RECIPE, int8=("*.v_proj",), **small)

    def inputs(recipe):
        return [len(split_inputs(group, np.eye(64), recipe)) for group in groups if len(group) > 1]

    assert inputs(recipe) == [copies, 128, copies, 128]
    assert inputs(dataclasses.replace(recipe, split=16)) == [80] * 4
    assert inputs(Recipe(scheme="w8", block=32, rounding="gptq", **small)) == [128] * 4


def test_nothing_is_split_where_nobody_wants_it_or_something_else_reads_the_norm(model_dir, tmp_path):
    unsplit, partly, before = (ModelGraph.open(model_dir) for _ in range(3))
    recipe = dataclasses.replace(RECIPE, split=0)
    codes = round_in_turn(unsplit, recipe, ROWS, tmp_path, Progress(quiet=True)).weights
    assert {name: rounded.codes.shape for name, rounded in codes.items()} == {
        linear.name: linear.shape for linear in before.linears if linear.name in codes
    }
    assert all(np.array_equal(gain, norms_of(unsplit)[name]) for name, gain in norms_of(before).items())
    recipe = dataclasses.replace(RECIPE, keep=("*.0.*.up_proj",))
    codes = round_in_turn(partly, recipe, ROWS, tmp_path, Progress(quiet=True)).weights
    gates = [rounded.codes.shape[0] for name, rounded in codes.items() if name.endswith("gate_proj")]
    assert gates == [64, 128]


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C at the n-th rounding of a group from now on; counts them. Two layers have four groups each."""

    class Stop:
        count, at = 0, None

        def __call__(self, *arguments, **options):
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
            return gptq(*arguments, **options)

    stop = Stop()
    monkeypatch.setattr(sequential, "gptq", stop)
    return stop


@pytest.mark.parametrize("at", [1, 2, 5, 8])  # the first group, others, and the very last
def test_an_interrupted_rounding_goes_on_with_the_group_it_was_stopped_in(model_dir, tmp_path, stopped, at):
    graph = ModelGraph.open(model_dir)
    whole = round_in_turn(graph, RECIPE, ROWS, tmp_path / "whole", Progress(quiet=True)).weights
    stopped.count, stopped.at = 0, at
    with pytest.raises(KeyboardInterrupt):
        round_in_turn(ModelGraph.open(model_dir), RECIPE, ROWS, tmp_path / "work", Progress(quiet=True))
    stopped.count, stopped.at = 0, None
    resumed = ModelGraph.open(model_dir)
    found = round_in_turn(resumed, RECIPE, ROWS, tmp_path / "work", Progress(quiet=True)).weights
    assert stopped.count == 8 - (at - 1)
    assert all(np.array_equal(gain, norms_of(resumed)[name]) for name, gain in norms_of(graph).items())
    assert list(found) == list(whole)
    for name, rounded in whole.items():
        assert np.array_equal(rounded.codes, found[name].codes)
        assert np.array_equal(rounded.scales, found[name].scales)
    assert not (tmp_path / "work" / "rounded" / "rows").exists()


@pytest.mark.parametrize("change", ["rows", "recipe", "tables", "damage", "a file is gone"])
def test_what_was_kept_of_other_work_or_is_damaged_is_not_used(model_dir, tmp_path, stopped, change):
    stopped.at = 6
    with pytest.raises(KeyboardInterrupt):
        round_in_turn(ModelGraph.open(model_dir), RECIPE, ROWS, tmp_path, Progress(quiet=True))
    rows = ROWS[:-1] if change == "rows" else ROWS
    changed = {"recipe": {"block": 64}, "tables": {"embedding": "int8", "head": "int8"}}
    recipe = dataclasses.replace(RECIPE, **changed.get(change, {}))
    first = tmp_path / "rounded" / "rounded-0.npz"
    if change == "damage":
        first.write_bytes(first.read_bytes()[:100])
    if change == "a file is gone":
        first.unlink()
    stopped.count, stopped.at = 0, None
    round_in_turn(ModelGraph.open(model_dir), recipe, rows, tmp_path, Progress(quiet=True))
    assert stopped.count == 8
