"""--budget and --keep-worst of encoders: what is measured is what is written."""

import json

import pytest

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.w8a8 import round_all
from piston.calibration.search.budget import Budget
from piston.calibration.search.encoder_meter import EncoderMeter
from piston.calibration.search.meter import cost_of
from piston.cli.main import main
from piston.core.console import Progress
from piston.core.errors import MisuseError, ShortfallError
from piston.core.gates import parse_gate
from piston.core.tasks import task_module
from piston.data.rows import RowOptions, load_rows
from piston.evaluation import tasks
from piston.runtime import load
from piston.runtime.bundle import Bundle

ROWS = RowOptions(num_rows=4, seq_len=12, seed=1)
WORDS = ["hello", "world", "in", "paris", "wo", "rld", "a", "b", "c", "?"]
LOOSE = CheckOptions(bounds=("distance<=100%",))
W8A8 = Recipe(scheme="w8a8")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"{first} {second} in paris" for first in WORDS for second in WORDS))
    return path


def budget(text, task="text-classification", seconds=600.0):
    return Budget(bound=parse_gate(text, task_module(tasks, task).METRICS), seconds=seconds)


def test_a_switched_encoder_moves_as_far_as_the_written_one(encoder_toys, text, tmp_path):
    model_dir = encoder_toys.model("single")
    recipe = Recipe(scheme="w8a8", keep=("*.intermediate.*", "*.query"), kept="float")
    written = calibrate(model_dir, tmp_path / "out", recipe, [text], rows=ROWS, checked=LOOSE)
    graph = ModelGraph.open(model_dir)
    rows = load_rows([text], Bundle.open(model_dir), ROWS).ids
    prepared = round_all(graph, Recipe(scheme="w8a8", kept="float"), rows, tmp_path / "work", Progress(quiet=True))
    graph.save_float(tmp_path / "prepared")
    held_out = written.check.held_out.ids
    meter = EncoderMeter(graph, prepared, tmp_path / "prepared", [held_out], None)
    nothing, some, again = (meter.figures(names, held_out) for names in ((), written.quantized, ()))
    meter.close()
    for name, value in written.check.comparison.values.items():
        assert some[name] == pytest.approx(value, rel=0.02)
    assert nothing == again
    assert cost_of(nothing) < cost_of(some) / 1000


def test_a_budget_keeps_some_linears_and_its_recipe_replays_to_the_same_bytes(encoder_toys, text, tmp_path):
    model_dir = encoder_toys.model("tagger")
    task = "token-classification"
    everything = calibrate(
        model_dir, tmp_path / "all", W8A8, [text], rows=ROWS, checked=LOOSE, budget=budget("distance<=100%", task)
    )
    assert not everything.kept
    bound = everything.spent.points[0].figures["distance"] * 0.8
    found = calibrate(
        model_dir, tmp_path / "first", W8A8, [text], rows=ROWS, checked=LOOSE,
        budget=budget(f"distance<={100 * bound:.6f}%", task),
    )  # fmt: skip
    assert 0 < len(found.kept) < len(everything.quantized)
    assert found.check.comparison.values["distance"] <= bound
    assert set(found.spent.best.kept) == set(found.kept)
    settled = Recipe.from_json(json.loads(json.dumps(found.recipe.to_json())))
    calibrate(model_dir, tmp_path / "second", settled, [text], rows=ROWS, checked=LOOSE)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.fixture
def labelled(encoder_toys, tmp_path):
    """Texts with the labels that the float model gives them."""
    texts = [f"{first} {second}" for first in WORDS for second in WORDS]
    with load(encoder_toys.bundle("single")) as model:
        records = [
            {"text": text, "label": scores[0].label} for text, scores in zip(texts, model.classify(texts), strict=True)
        ]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_a_budget_may_be_about_labelled_examples(encoder_toys, text, labelled, tmp_path):
    model_dir = encoder_toys.model("single")
    checked = CheckOptions(bounds=("distance<=100%",), labelled=labelled)
    found = calibrate(
        model_dir, tmp_path / "out", W8A8, [text], rows=ROWS, checked=checked, budget=budget("accuracy>=-50%")
    )
    assert {"accuracy", "accuracy_change", "accuracy_reference"} <= set(found.spent.points[0].figures)
    assert found.spent.points[0].figures["accuracy_reference"] == 1.0
    assert found.check.comparison.values["accuracy"] >= 0.5
    with pytest.raises(MisuseError, match="is measured on labelled examples; give them as --labelled FILE"):
        calibrate(model_dir, tmp_path / "x", W8A8, [text], rows=ROWS, budget=budget("accuracy>=-50%"))


def test_a_change_is_aimed_at_a_little_inside_its_bound():
    assert budget("accuracy>=-1%").aim.bound == pytest.approx(-0.009)
    assert budget("accuracy>=90%").aim.bound == pytest.approx(0.91)
    assert budget("distance<=10%").aim.bound == pytest.approx(0.09)


def test_the_worst_linear_stays_in_float(encoder_toys, text, tmp_path):
    model_dir = encoder_toys.model("reranker")
    found = calibrate(model_dir, tmp_path / "out", W8A8, [text], rows=ROWS, checked=LOOSE, keep_worst=1)
    (kept,) = found.kept
    graph = ModelGraph.open(encoder_toys.model("reranker"))
    linears = {linear.name: linear.shape[0] * linear.shape[1] for linear in graph.linears}
    assert kept == max(found.cost_alone, key=lambda name: found.cost_alone[name] / linears[name])


def test_vectors_are_measured_by_their_cosine(sentence_model, tmp_path):
    lines = ["a girl is styling her hair", "men play football on the beach", "query: a girl"]
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(f"{first} {second}" for first in lines for second in lines for _ in range(8)))
    bound = budget("cosine>=0.5", "feature-extraction")
    found = calibrate(sentence_model[0], tmp_path / "out", W8A8, [data], rows=ROWS, budget=bound)
    assert 0.5 <= found.spent.best.figures["cosine"] < 1
    assert all(value >= 0 for value in found.spent.cost_alone.values())


def test_a_budget_that_cannot_be_met_says_the_best_and_writes_nothing(encoder_toys, text, tmp_path):
    with pytest.raises(ShortfallError, match=r"The budget cannot be met \(distance<=0%\): of .* in integers, distance"):
        calibrate(
            encoder_toys.model("single"), tmp_path / "out", W8A8, [text], rows=ROWS, budget=budget("distance<=0%")
        )
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_searched_are_refused(text_model, text, tmp_path, capsys):
    words = ["calibrate", str(text_model[0]), "-o", str(tmp_path / "out"), "--scheme", "w8a8", "--data", str(text)]
    for option in (["--keep-worst", "1"], ["--budget", "kl<=1"]):
        assert main([*words, "--quiet", *option]) == 2
        assert f"{option[0]} is for language models and encoders, and this" in capsys.readouterr().err
