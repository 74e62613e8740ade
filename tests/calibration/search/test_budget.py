"""--budget on a toy: what is measured is what is written, and a search can stop and go on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from piston.calibration.calibrate import calibrate
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.w8a8 import round_all
from piston.calibration.search.budget import Budget, BudgetResult, Point
from piston.calibration.search.meter import Meter
from piston.cli.main import main
from piston.core.console import Progress
from piston.core.errors import ShortfallError
from piston.core.gates import parse_gate
from piston.core.json_text import json_text
from piston.data.rows import RowOptions, load_rows
from piston.evaluation.tasks.text_generation import METRICS
from piston.runtime.bundle import Bundle

ROWS = RowOptions(num_rows=4, seq_len=24)
SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions by night"
LINEARS = 14


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(SENTENCE.split(), 12)) + "." for _ in range(200)))
    return path


def budget(text, seconds=600.0):
    return Budget(bound=parse_gate(text, METRICS), seconds=seconds)


# ONNX Runtime makes MatMulNBits of a weight in INT8 alone, which rounds activations in blocks; the meter has floats.
@pytest.mark.parametrize(("kept", "tolerance"), [("float", 0.02), ("int8", 0.05)])
def test_a_switched_model_costs_what_the_written_one_does(model_dir, text, tmp_path, kept, tolerance):
    recipe = Recipe(scheme="w8a8", keep=("*.layers.0.mlp.down_proj", "*.q_proj"), kept=kept)
    written = calibrate(model_dir, tmp_path / "out", recipe, [text], rows=ROWS)
    rows = load_rows([text], Bundle.open(model_dir), ROWS).ids
    graph = ModelGraph.open(model_dir)
    prepared = round_all(graph, Recipe(scheme="w8a8", kept=kept), rows, tmp_path / "work", Progress(quiet=True))
    graph.save_float(tmp_path / "prepared")
    held_out = written.check.held_out.ids
    meter = Meter(graph, prepared, {}, tmp_path / "prepared", [held_out])
    nothing, some, again = (meter.figures(names, held_out) for names in ((), written.quantized, ()))
    meter.close()
    expected = written.check.near.agreement
    assert some["kl"] == pytest.approx(expected.kl.mean.value, rel=tolerance)
    assert some["ppl_change"] == pytest.approx(
        expected.perplexity_ratio.value - 1, abs=3e-5 if kept == "float" else 1e-3
    )
    assert nothing == again
    assert nothing["kl"] < some["kl"] / (1000 if kept == "float" else 2)


@pytest.mark.parametrize("scheme", ["w8a8", "w4", "w4 by gptq"])
def test_a_budget_keeps_some_linears_and_its_recipe_replays_to_the_same_bytes(model_dir, text, tmp_path, scheme):
    scheme, _, rounding = scheme.partition(" by ")
    recipe = Recipe(scheme=scheme, block=32 if scheme == "w4" else 0, rounding=rounding or "nearest")
    everything = calibrate(model_dir, tmp_path / "all", recipe, [text], rows=ROWS, budget=budget("kl<=1"))
    cost = everything.spent.points[0].figures["kl"]
    assert everything.kept == ["lm_head"]
    bound = cost / 2
    found = calibrate(model_dir, tmp_path / "first", recipe, [text], rows=ROWS, budget=budget(f"kl<={bound:.9f}"))
    assert 1 < len(found.kept) < LINEARS
    assert found.check.near.agreement.kl.mean.value <= bound
    best = found.manifest.made_by["calibration"]["budget"]["best"]
    assert set(best["kept"]) == {*found.kept} - {"lm_head"}
    assert 0 < best["share"] < 1
    data = [text] if found.recipe.reads_text else []
    settled = Recipe.from_json(json.loads(json.dumps(found.recipe.to_json())))
    calibrate(model_dir, tmp_path / "second", settled, data, rows=ROWS)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_an_interrupted_search_goes_on_where_it_stopped(model_dir, text, tmp_path, monkeypatch):
    passes = []
    figures = Meter.figures

    def counted(self, quantized, rows):
        passes.append(frozenset(quantized))
        if len(passes) == 7:  # the floor, five groups, and this one
            raise KeyboardInterrupt
        return figures(self, quantized, rows)

    monkeypatch.setattr(Meter, "figures", counted)
    arguments = (model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text])
    with pytest.raises(KeyboardInterrupt):
        calibrate(*arguments, rows=ROWS, budget=budget("kl<=1"))
    assert not (tmp_path / "out").exists()
    done = set(passes[:6])
    del passes[:]
    monkeypatch.setattr(Meter, "figures", lambda self, *rest: passes.append(frozenset(rest[0])) or figures(self, *rest))
    calibrate(*arguments, rows=ROWS, budget=budget("kl<=1"))
    assert not done & set(passes)
    assert len(passes) == 1 + 8 - 6 + 1  # the floor, eight groups alone, and all together
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_search_goes_on_after_a_model_whose_figures_are_infinite():
    point = Point(kept=["a"], share=0.5, size=3, figures={"ppl": float("inf"), "kl": 0.1})
    spent = BudgetResult("kl<=0.1", {"a": float("inf")}, 0.25, [point])
    assert BudgetResult.from_json(json.loads(json_text(spent.to_json()))) == spent


def test_ranking_takes_half_the_time_at_most_and_begins_with_the_worst(model_dir, text, tmp_path, monkeypatch):
    now, figures = [0.0], Meter.figures

    def slow(self, *arguments):
        now[0] += 10
        return figures(self, *arguments)

    monkeypatch.setattr(Meter, "figures", slow)
    monkeypatch.setattr("piston.calibration.search.budget.time", SimpleNamespace(monotonic=lambda: now[0]))
    recipe = Recipe(scheme="w8a8")
    found = calibrate(model_dir, tmp_path / "out", recipe, [text], rows=ROWS, budget=budget("kl<=1", seconds=60))
    ranked = list(found.spent.cost_alone)
    assert len(ranked) == 3  # of eight, at 10, 20 and 30 s, behind the floor
    assert next(iter(found.sensitivity)) in ranked[0].split(",")
    assert (found.kept, len(found.spent.points), found.spent.is_complete) == (["lm_head"], 1, False)


def test_a_budget_that_cannot_be_met_says_the_best_and_writes_nothing(model_dir, text, tmp_path, capsys):
    words = [
        "calibrate",
        str(model_dir),
        "-o",
        str(tmp_path / "out"),
        "--scheme",
        "w8a8",
        "--quiet",
        "--data",
        str(text),
    ]
    words += ["--samples", "4", "--seq-len", "24", "--budget", "kl<=0"]
    assert main(words) == 1
    assert "The budget cannot be met (kl<=0): of " in (said := capsys.readouterr().err)
    assert "% of the linears' multiply-adds in integers, perplexity" in said
    assert not (tmp_path / "out").exists()
    (kept,) = tmp_path.iterdir()
    assert f"The work so far is kept in {kept}" in said
    assert [path.name for path in kept.iterdir()] == ["budget.json"]


def test_a_written_model_beyond_the_bound_is_searched_again_further_inside_it(
    model_dir, text, tmp_path, monkeypatch, capsys
):
    figures = Meter.figures

    def too_good(self, *arguments):
        found = figures(self, *arguments)
        return {**found, "kl": found["kl"] / 3}

    whole = calibrate(model_dir, tmp_path / "whole", Recipe(scheme="w8a8"), [text], rows=ROWS)
    bound = whole.check.near.agreement.kl.mean.value / 2
    monkeypatch.setattr(Meter, "figures", too_good)
    found = calibrate(
        model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS, budget=budget(f"kl<={bound}")
    )
    assert found.check.near.agreement.kl.mean.value <= bound
    assert 0 < len(found.kept) < LINEARS
    assert "searching again" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    ("bound", "value", "share"), [("kl<=0.01", 0.02, 0.9 / 2 * 0.97), ("top1>=90%", 0.8, 0.9 / 2 * 0.97)]
)
def test_the_next_search_aims_lower_by_what_the_last_one_missed(bound, value, share):
    found = budget(bound)
    verdict = found.bound.judge({found.bound.quantity: value})
    assert found.after([verdict]).share == pytest.approx(share)
    assert found.after([found.bound.judge({found.bound.quantity: 0.9 if "top1" in bound else 0.0})]) is None


@pytest.mark.parametrize(("bound", "value"), [("kl<=0", 0.01), ("ppl<=0%", 0.01), ("top1>=100%", 0.99)])
def test_nothing_is_further_inside_a_bound_that_allows_nothing(bound, value):
    found = budget(bound)
    assert found.after([found.bound.judge({found.bound.quantity: value})]) is None


def test_time_that_is_over_before_anything_was_measured_is_said(model_dir, text, tmp_path):
    with pytest.raises(ShortfallError, match="over before any whole model was measured"):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS, budget=budget("kl<=1", 0.0))


@pytest.mark.parametrize(
    "words",
    [
        ["--scheme", "w8", "--budget", "ppl<=2%"],
        ["--scheme", "w8a8", "--data", "builtin", "--budget", "2%"],
        ["--scheme", "w8a8", "--data", "builtin", "--budget", "ppl<=2%", "--keep-worst", "2"],
        ["--scheme", "w8a8", "--data", "builtin", "--budget", "ppl<=2%", "--budget-time", "soon"],
        ["--scheme", "fp", "--kv", "int8", "--data", "builtin", "--budget", "ppl<=2%"],
        ["--recipe", "/nowhere.json", "--budget", "ppl<=2%"],
    ],
)
def test_a_budget_that_makes_no_sense_is_misuse(model_dir, tmp_path, capsys, words):
    assert main(["calibrate", str(model_dir), "-o", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
