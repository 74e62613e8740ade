import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from encoders import write_sentence_checkpoint

from piston.calibration.calibrate import CheckOptions, calibrate
from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import by_weight
from piston.calibration.graph.names import module_of
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.awq import round_aware
from piston.calibration.search.budget import Budget
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.core.gates import parse_gate
from piston.core.tasks import task_module
from piston.data.rows import RowOptions, load_rows
from piston.engines import build
from piston.evaluation import tasks
from piston.export import export_model
from piston.graph.sparsity import sparse_matmuls
from piston.runtime import load
from piston.runtime.bundle import Bundle

WORDS = ["a", "girl", "is", "styling", "her", "hair", "men", "play", "football", "on", "the", "beach"]
ROWS = RowOptions(num_rows=6, seq_len=12, seed=1)
LAYERS = 3


@pytest.fixture(scope="module")
def albert(tmp_path_factory):
    """A model directory of a seeded ALBERT, whose layers are one module run three times."""
    root = tmp_path_factory.mktemp("albert")
    write_sentence_checkpoint(root / "checkpoint", "albert", config={"num_hidden_layers": LAYERS})
    export_model(root / "checkpoint", root / "model")
    return root / "model"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 600)))
    return path


def test_runs_of_one_module_have_names_of_their_own_and_the_patterns_of_the_module(albert):
    linears = ModelGraph.open(albert).linears
    assert len({linear.name for linear in linears}) == len(linears)
    runs = Counter(module_of(linear.name) for linear in linears)
    assert set(runs.values()) == {1, LAYERS}
    weights = Counter(linear.weight.name for linear in linears)
    assert set(weights.values()) == {1, LAYERS}
    kept = Recipe(scheme="w8a8", keep=("*.query",)).chosen(linears)
    assert len(kept) == len(linears) - LAYERS


@pytest.mark.parametrize("outliers", [0, 2])
def test_layers_that_share_weights_are_quantized_with_their_own_scales(albert, data, tmp_path, outliers):
    checked = CheckOptions(bounds=("cosine>=0.98",))
    found = calibrate(
        albert, tmp_path / "int8", Recipe(scheme="w8a8", outliers=outliers), [data], rows=ROWS, checked=checked
    )
    assert not found.kept
    graph = onnx.load(tmp_path / "int8/model.onnx").graph
    names = [node.name for node in graph.node] + [name for node in graph.node for name in node.output]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    codes = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 2]
    assert len(codes) == len({linear.weight.name for linear in ModelGraph.open(albert).linears})
    build(tmp_path / "int8", tmp_path / "bundle")
    build(albert, tmp_path / "float")
    texts = ["her hair on the beach", "a girl"]
    with load(tmp_path / "bundle") as int8, load(tmp_path / "float") as plain:
        assert np.min(np.sum(int8.embed(texts) * plain.embed(texts), axis=1)) > 0.97


def test_what_shares_a_weight_with_a_spared_linear_stays_in_float_too(albert, data, tmp_path):
    first = calibrate(albert, tmp_path / "all", Recipe(scheme="w8a8"), [data], rows=ROWS)
    (name,) = [name for name in first.quantized if name.endswith(".query")]
    recipe = dataclasses.replace(first.recipe, kept_in_float=(name,))
    found = calibrate(albert, tmp_path / "some", recipe, [data], rows=ROWS)
    assert found.kept == [name, f"{name}@2", f"{name}@3"]


def test_a_pattern_that_names_one_run_keeps_the_module_in_all_its_runs(albert, data, tmp_path):
    names = [linear.name for linear in ModelGraph.open(albert).linears]
    second = next(name for name in names if name.endswith(".query@2"))
    module = second.removesuffix("@2")
    found = calibrate(albert, tmp_path / "out", Recipe(scheme="w8a8", keep=(second,)), [data], rows=ROWS)
    assert found.kept == [module, f"{module}@2", f"{module}@3"]
    assert found.recipe.keep == (module,)


def test_awq_rounds_a_shared_weight_once_for_what_all_its_runs_read(albert, data, tmp_path):
    graph = ModelGraph.open(albert)
    recipe, rows = Recipe(scheme="w4", rounding="awq", block=16), load_rows([data], Bundle.open(albert), ROWS).ids
    rounded = round_aware(graph, recipe, rows, tmp_path, Progress(quiet=True)).weights
    runs = by_weight(linear for linear in graph.linears if linear.name in rounded)
    assert max(map(len, runs.values())) == LAYERS
    for linears in runs.values():
        assert len({id(rounded[linear.name]) for linear in linears}) == 1


def kept_modules(found):
    """The modules kept in float; each of them in all its runs."""
    runs = Counter(module_of(name) for name in found.kept)
    assert set(runs.values()) <= {1, LAYERS}
    assert not {module_of(name) for name in found.quantized} & set(runs)
    return set(runs)


def test_keep_worst_keeps_weights_in_all_their_runs(albert, data, tmp_path):
    found = calibrate(albert, tmp_path / "out", Recipe(scheme="w8a8"), [data], rows=ROWS, keep_worst=2)
    assert len(kept_modules(found)) == 2
    again = calibrate(albert, tmp_path / "again", found.recipe, [data], rows=ROWS)
    assert again.kept == found.kept


def test_a_budget_decides_for_all_runs_of_a_weight(albert, data, tmp_path):
    recipe = Recipe(scheme="w8a8", kept="float")
    whole = calibrate(albert, tmp_path / "whole", recipe, [data], rows=ROWS).check.comparison.values
    bound = 1 - (1 - whole["cosine"]) / 2  # some of what is lost may be lost
    budget = Budget(bound=parse_gate(f"cosine>={bound}", task_module(tasks, "feature-extraction").METRICS))
    found = calibrate(albert, tmp_path / "out", recipe, [data], rows=ROWS, budget=budget)
    assert found.check.comparison.values["cosine"] >= bound
    assert kept_modules(found)
    spent = found.spent
    assert set(spent.best.kept) == set(found.kept)
    assert not any("@" in names for names in spent.cost_alone)
    linears = ModelGraph.open(albert).linears
    work = {linear.name: linear.shape[0] * linear.shape[1] for linear in linears}
    share = sum(work[name] for name in found.quantized) / sum(work.values())
    assert spent.best.share == pytest.approx(share)
    # A weight is stored once: three bytes less a value, and four for the scale of each output.
    shapes = {module_of(linear.name): linear.shape for linear in linears if linear.name in found.quantized}
    saved = sum(3 * rows * columns - 4 * columns for rows, columns in shapes.values())
    files = [albert / "model.onnx.data", albert / "model.onnx"]
    assert spent.best.size == next(path for path in files if path.exists()).stat().st_size - saved


@pytest.mark.parametrize(
    ("recipe", "remedy"),
    [
        (Recipe(scheme="w8", rounding="gptq"), "GPTQ .* give --rounding nearest or awq"),
        (Recipe(scheme="w8", sparsity="2:4"), "SparseGPT .* give --pruning magnitude"),
    ],
)
def test_what_makes_up_for_the_layers_before_is_refused(albert, data, tmp_path, recipe, remedy):
    with pytest.raises(MisuseError, match=f"shares weights between its layers .*{remedy}"):
        calibrate(albert, tmp_path / "out", recipe, [data], rows=ROWS)


def test_shared_weights_become_sparse_by_magnitude(albert, tmp_path):
    recipe = Recipe(scheme="w8", sparsity="2:4", pruning="magnitude")
    calibrate(albert, tmp_path / "out", recipe, checked=CheckOptions(bounds=("cosine>=0",)))
    linears = ModelGraph.open(albert).linears
    found = sparse_matmuls(ir.load(tmp_path / "out/model.onnx").graph)
    assert sum(found.values()) == len(recipe.sparse(linears)) > LAYERS
