"""Inputs that matter are rounded more finely, at no cost to the model in float."""

import numpy as np
import pytest

pytest.importorskip("torch")
from canonical import CanonicalSession

from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.awq import ALPHAS, round_aware, round_weighted, scaling_factors, search
from piston.calibration.schemes.w8a8 import Activation, weight_of
from piston.core.console import Progress
from piston.graph.rounding import Grid, round_to_nearest

GRID = Grid(4, 32)
ROWS = np.random.default_rng(0).integers(3, 131, (4, 20))


def problem(seed=0, inputs=64, outputs=24):
    """Activations of very different sizes by channel."""
    rng = np.random.default_rng(seed)
    sample = (rng.normal(size=(80, inputs)) * np.exp(1.5 * rng.normal(size=inputs))).astype(np.float32)
    return Activation([], np.abs(sample).max(axis=0), sample), rng.normal(size=(inputs, outputs)).astype(np.float32)


def test_the_choice_is_never_worse_than_no_scaling():
    for seed in range(6):
        activation, weight = problem(seed)
        found = search(activation, [weight], [GRID])
        assert found.error_after <= found.error_before


def test_channels_of_different_sizes_gain():
    activation, weight = problem()
    found = search(activation, [weight], [GRID])
    assert found.alpha in ALPHAS
    assert found.error_after < 0.8 * found.error_before


def test_the_error_is_that_of_the_written_weights():
    activation, weight = problem()
    found = search(activation, [weight], [GRID])
    rounded = round_to_nearest(weight * found.factors[:, None], GRID).dequantized()
    given, exact = (activation.sample / found.factors) @ rounded, activation.sample @ weight
    shares = np.square(given - exact).sum(axis=1) / np.square(exact).sum(axis=1)
    assert found.error_after == pytest.approx(np.median(shares), rel=1e-3)


def test_channels_that_share_a_factor_get_one_and_dead_ones_none():
    factors = scaling_factors(np.array([1, 2, 3, 4], np.float32), 0.5, np.array([0, 1, 0, 1]))
    assert factors[0] == factors[2] != factors[1] == factors[3]
    assert scaling_factors(np.array([0, 1, 4], np.float32), 1.0)[0] == 1


def test_an_input_that_matters_decides_the_clip():
    weight = np.array([[1.0], [0.1], [0.12], [0.08]] * 8, np.float32)
    small = np.where(weight[:, 0] < 1, 1, 1e-6).astype(np.float32)
    errors = np.square(weight - round_weighted(weight, GRID, small).dequantized())[:, 0]
    plain = np.square(weight - round_weighted(weight, GRID, np.ones(32, np.float32)).dequantized())[:, 0]
    assert small @ errors < small @ plain


def test_the_float_model_is_the_same_and_the_weights_are_not(model_dir, tmp_path):
    graph, untouched = ModelGraph.open(model_dir), ModelGraph.open(model_dir)
    before = {linear.name: weight_of(linear).copy() for linear in untouched.linears}
    prepared = round_aware(graph, Recipe(scheme="w4", block=32, rounding="awq"), ROWS, tmp_path, Progress(quiet=True))
    assert len(prepared.weights) == 14
    assert any(np.abs(weight_of(linear) - before[linear.name]).max() > 1e-3 for linear in graph.linears)
    graph.save_float(tmp_path / "folded")
    prompt = ROWS[0].tolist()
    seq = len(prompt)

    def logits(directory):
        session = CanonicalSession(directory / "model.onnx", graph.manifest.cache, 1, seq)
        return session.step([prompt], [range(seq)], [0], [seq], [range(seq)])[0]

    assert np.abs(logits(tmp_path / "folded") - logits(model_dir)).max() < 1e-3


def test_codes_are_of_the_weights_as_all_folds_left_them(model_dir, tmp_path):
    """Folding into o_proj's and down_proj's inputs divides v_proj and up_proj, which come earlier in the graph."""
    graph = ModelGraph.open(model_dir)
    recipe = Recipe(scheme="w8", block=32, rounding="awq")
    weights = round_aware(graph, recipe, ROWS, tmp_path, Progress(quiet=True)).weights
    for linear in graph.linears:
        if linear.name in weights:
            weight = weight_of(linear)
            assert np.linalg.norm(weights[linear.name].dequantized() - weight) < 0.02 * np.linalg.norm(weight)
