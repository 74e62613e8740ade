"""2:4 sparse models on own kernels: bundles without the zeros are smaller, and answer with the same bits."""

import json
from pathlib import Path

import numpy as np
import pytest
from own_kernels import need_kernels

from piston.calibration.recipe import Recipe
from piston.cli.inspect import describe
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.engines import build
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions
from piston.runtime.bundle import Bundle
from piston.runtime.kernels import TARGET

SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
}
LENGTH = 96
PROSE = Path(__file__).parents[2] / "data/texts/prose.txt"
RECIPES = {
    "w8": Recipe(scheme="w8", sparsity="2:4", pruning="magnitude"),
    "w4": Recipe(scheme="w4", block=32, rounding="gptq", sparsity="2:4"),
    "w8a8": Recipe(scheme="w8a8", sparsity="2:4"),
}
# Of two layers, by their bytes: query and output, key and value, gate, up and down.
WEIGHTS = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 192)


@pytest.fixture(scope="module", params=RECIPES)
def bundles(request, toys):
    """The scheme, and bundles of one sparse model without and with its zeros."""
    need_kernels()
    rows = {"num_rows": 6, "seq_len": 24}
    recipe = RECIPES[request.param]
    text = None if recipe.pruning == "magnitude" else PROSE.read_text(encoding="utf-8")[:8000]
    model = toys.calibrated(toys.model_dir(**SIZES), recipe, text, bounds=("ppl<=1000%",), **rows)
    made = [toys.built(model, (TARGET,), max_length=LENGTH, **options) for options in ({}, {"sparsity": False})]
    return request.param, *made


def engine_of(directory):
    (spec,) = Bundle.open(directory).manifest.engines
    options = OrtOptions(threads=2, kernels=True)
    return OrtEngine.open(directory / spec.path, spec.cache, num_slots=2, capacity=LENGTH, options=options)


def logits_of(directory):
    """Of prompts of several lengths, and of two rows' steps."""
    engine, ids = engine_of(directory), np.random.default_rng(0).integers(3, 60, 80).tolist()
    first, second = engine.cache.admit(), engine.cache.admit()
    found = [engine.prefill(first, ids[:length])[-1].copy() for length in (1, 7)]
    found += [engine.prefill(second, ids)[-1].copy()]
    for token in (5, 9):
        found += [row.copy() for row in engine.step({first: token, second: token + 1}).values()]
    engine.close()
    return np.stack(found)


def test_answers_are_those_of_the_dense_engine(bundles):
    _, sparse, dense = bundles
    np.testing.assert_array_equal(logits_of(sparse), logits_of(dense))


def test_the_engine_is_smaller_by_the_zeros(bundles):
    scheme, sparse, dense = bundles
    actual = [Manifest.read(directory).engines[0].actual for directory in (sparse, dense)]
    saved = actual[1]["weights_bytes"] - actual[0]["weights_bytes"]
    if scheme == "w4":  # some layers have 8 bits there: of 4 a quarter is saved, of 8 three eighths
        assert WEIGHTS / 2 * 16 / 64 * 0.95 < saved < WEIGHTS * 24 / 64
    else:
        assert saved == pytest.approx(WEIGHTS * 24 / 64, rel=0.02)
    sizes = [sum(record.size for record in Manifest.read(directory).files.values()) for directory in (sparse, dense)]
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.1)


def test_what_was_packed_is_counted_and_shown(bundles):
    _, sparse, dense = bundles
    for directory, is_packed in ((sparse, True), (dense, False)):
        manifest = Manifest.read(directory)
        (engine,) = manifest.engines
        found = engine.actual["sparse"]
        assert found["packed"] == (found["layers"] if is_packed else 0)
        assert engine.requested.get("sparsity", True) is is_packed
        lines = "\n".join(describe(manifest, verified=True))
        assert f"sparse: layers {found['layers']}, share 1, packed {found['packed']}" in lines


def test_the_build_says_what_it_packed(bundles, capsys):
    from piston.engines.cli import _print_engine

    _, sparse, _ = bundles
    (engine,) = Manifest.read(sparse).engines
    _print_engine(engine)
    layers = engine.actual["sparse"]["layers"]
    assert (
        f"2:4 sparse: {layers} layers, 100.0% of the multiply-adds, {layers} stored without zeros"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
def test_a_dense_model_has_nothing_packed(toys, scheme):
    need_kernels()
    directory = toys.bundle((TARGET,), build={"max_length": LENGTH}, scheme=scheme, **SIZES)
    assert "sparse" not in json.loads((directory / "manifest.json").read_text())["engines"][0]["actual"]


def test_no_sparsity_needs_a_target_that_has_it(model_dir, tmp_path):
    with pytest.raises(MisuseError, match=f"--no-sparsity is for {TARGET} and TensorRT targets.*ort-cpu stores"):
        build(model_dir, tmp_path / "bundle", ["ort-cpu"], sparsity=False)
