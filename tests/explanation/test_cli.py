import io
import json
import re
from pathlib import Path

import jsonschema
import pytest
from modules import Perceptron, normal

from piston.calibration.recipe import Recipe
from piston.cli.main import main
from piston.engines import build
from piston.export import export_module

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/explain.json").read_text(encoding="utf-8"))
TEXT = "paris in world, good <b>"


def explain(capsys, *words):
    status = main(["explain", *map(str, words), "--quiet", "--threads", "1"])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_page_shows_words_heads_and_scores_and_loads_nothing(encoder_toys, tmp_path, capsys):
    out = tmp_path / "page.html"
    bundle = encoder_toys.bundle("single")
    status, printed, _ = explain(capsys, bundle, "--text", TEXT, "-o", out)
    assert status == 0
    assert "without a word it is lower by" in printed
    page = out.read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == ["What each word changes", "Scores", "Attention", "Encoder: average of 2 layers"]
    assert page.count("head 3</small>") == 2  # four heads in each of two layers
    assert ("&lt;" in page, "<b>" in page) == (True, False)
    assert not re.search(r"https?://|<script|<img|@import|url\(", page)


def test_json_has_every_number(encoder_toys, capsys):
    status, printed, _ = explain(capsys, encoder_toys.bundle("single"), "--text", TEXT, "--json")
    found = json.loads(printed)
    jsonschema.validate(found, SCHEMA)
    assert (status, found["task"], found["target"]) == (0, "text-classification", "ort-cpu")
    words = found["attributions"][0]["texts"]["text"]
    assert [TEXT[word["start"] : word["end"]] for word in words] == [word["word"] for word in words]
    weights = found["attention"][0]["weights"]
    assert [len(weights), len(weights[0])] == [4, len(found["attention"][0]["queries"])]
    assert found["attention_difference"] < 1e-5


def test_a_quantized_bundle_is_shown_next_to_the_float_one(toys, encoder_toys, tmp_path, capsys):
    int8 = toys.built(toys.calibrated(encoder_toys.model("single"), Recipe(scheme="w8"), seq_len=24))
    page = tmp_path / "page.html"
    words = [
        *(int8, "--text", "paris good"),
        *("--reference", encoder_toys.bundle("single"), "--json", "-o", page),
    ]
    status, printed, _ = explain(capsys, *words)
    found = json.loads(printed)
    jsonschema.validate(found, SCHEMA)
    assert (status, found["scheme"], found["reference"]["scheme"]) == (0, "w8", "fp")
    assert found["attributions"][0]["of"] == found["reference"]["attributions"][0]["of"]
    assert page.read_text(encoding="utf-8").count("<figcaption>probability of") == 2


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("single", [], "which is explained by --text TEXT [--text-pair TEXT]"),
        ("single", ["--text", "in", "--query", "in"], "which is explained by --text TEXT [--text-pair TEXT]"),
        ("single", ["--text", "good world", "--max-tokens", "3"], "--max-tokens is for models that write"),
        ("reranker", ["--query", "a b", "--document", "c d", "--label", "x"], "--label is for text-classification"),
        ("single", ["--text", "good world", "--source-lang", "en"], "are for translators, and"),
    ],
)
def test_options_of_other_tasks_are_refused(encoder_toys, name, words, reason, capsys):
    status, _, error = explain(capsys, encoder_toys.bundle(name), *words)
    assert status == 2
    assert reason in error


def test_a_dash_reads_standard_input_which_must_have_text(encoder_toys, capsys, monkeypatch):
    bundle = encoder_toys.bundle("single")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    expected = explain(capsys, bundle, "--text", TEXT, "--json")
    assert explain(capsys, bundle, "--text", "-", "--json") == expected
    status, _, said = explain(capsys, bundle, "--text", "-")
    assert (status, said.startswith("error: Standard input has no text; ")) == (2, True)


def test_a_translation_needs_both_languages_and_those_that_the_model_has(text_bundle, capsys):
    status, _, error = explain(capsys, text_bundle, "--text", "the sea", "--source-lang", "en")
    assert (status, "--source-lang and --target-lang need one another" in error) == (2, True)
    status, _, error = explain(capsys, text_bundle, "--text", "the sea", "--source-lang", "en", "--target-lang", "de")
    assert (status, "has no language codes" in error) == (2, True)


def test_a_module_cannot_be_explained(tmp_path, capsys):
    export_module(Perceptron(), {"x": normal(2, 12)}, tmp_path / "model")
    build(tmp_path / "model", tmp_path / "bundle")
    status, _, error = explain(capsys, tmp_path / "bundle", "--text", "in")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "is for module, which cannot be explained; tasks that can: feature-extraction, " in error
