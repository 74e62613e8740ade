import functools
import json
import re
from pathlib import Path

import jsonschema
import pytest
from making import Commands, write_recipe

from piston.pipeline import make as make_module
from piston.pipeline.make import MakeOptions

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"


@pytest.fixture
def commands(monkeypatch):
    made = Commands()
    monkeypatch.setattr(make_module, "MakeOptions", functools.partial(MakeOptions, run=made))
    return made


@pytest.fixture
def recipe(tmp_path):
    def with_license(text):
        return text.replace("[calibrate]", 'license = "MIT"\n\n[calibrate]', 1)

    return write_recipe(tmp_path / "place", with_license)


def run(piston, recipe, *words):
    return piston("make", recipe, "--cache-dir", recipe.parent / "cache", "--quiet", *words)


def test_a_run_that_met_its_gates_ends_well_and_says_what_it_did(piston, recipe, commands):
    result = run(piston, recipe)
    assert (result.status, result.err) == (0, "")
    assert "gate       met     eval.ppl <= 2%" in result.out
    assert re.search(r"published, fp, \d+\.\d kB\n$", result.out)


def test_a_gate_that_is_not_met_ends_with_1_and_is_named_on_stderr(piston, recipe, commands):
    commands.change = 0.5
    result = run(piston, recipe)
    assert result.status == 1
    assert "gate not met: eval.ppl <= 2%: perplexity is 50.00% above the reference's" in result.err


def test_json_is_of_the_published_schema(piston, recipe, commands):
    report = json.loads(run(piston, recipe, "--json").out)
    jsonschema.validate(report, json.loads((SCHEMAS / "make.json").read_text(encoding="utf-8")))
    assert report["is_met"] is True


def test_reports_the_page_of_the_evaluation_and_the_licence_go_where_they_were_asked_for(piston, recipe, commands):
    place = recipe.parent / "report"
    run(piston, recipe, "--report", place)
    names = {"report.json", "junit.xml", "summary.md", "index.html", "eval.html", "sbom.cdx.json"}
    assert {path.name for path in place.iterdir()} == names
    model = json.loads((place / "sbom.cdx.json").read_text())["metadata"]["component"]
    assert model["licenses"] == [{"expression": "MIT"}]


def test_a_dry_run_runs_nothing_and_says_what_is_cached(piston, recipe, commands):
    first = json.loads(run(piston, recipe, "--dry-run", "--json").out)
    assert commands.calls == []
    assert not (recipe.parent / "cache").exists()
    run(piston, recipe)
    second = json.loads(run(piston, recipe, "--dry-run", "--json").out)
    assert [stage["is_cached"] for stage in first["stages"]] == [False] * 5
    assert [stage["is_cached"] for stage in second["stages"]] == [True] * 5
    assert [stage["key"] for stage in first["stages"]] == [stage["key"] for stage in second["stages"]]
    assert "cached" in run(piston, recipe, "--dry-run").out


def test_a_dry_run_prints_the_hash_that_a_recipe_does_not_state_yet(piston, tmp_path, commands):
    lines = []

    def without_hash(text):
        lines.append(next(line for line in text.splitlines() if line.startswith("sha256")))
        return text.replace(lines[0], "")

    recipe = write_recipe(tmp_path / "place", without_hash)
    result = run(piston, recipe, "--dry-run")
    assert (result.status, result.err) == (0, "")
    assert f"sha256 {lines[0].split(chr(34))[1]}" in result.out
    assert run(piston, recipe).status == 2
    assert commands.calls == []


def test_a_lock_without_equality_fails(piston, recipe, commands):
    run(piston, recipe)
    commands.engine, commands.graph, commands.expected = b"x", b"y", commands.expected
    commands.expected = type(commands.expected)(
        answers=tuple(
            type(answer)(prompt=answer.prompt, prompt_ids=answer.prompt_ids, token_ids=(9, 9), margins=answer.margins)
            for answer in commands.expected.answers
        ),
        noise=0.0,
        by="engine",
    )
    result = run(piston, recipe, "--locked")
    assert result.status == 1
    assert "bytes, graph and answers all differ" in result.err


def test_a_recipe_that_is_wrong_is_misuse(refused, tmp_path):
    recipe = write_recipe(tmp_path / "place", lambda text: text.replace("[build]", "[bild]"))
    status, message = refused("make", recipe)
    assert (status, "recipe.toml: " in message) == (2, True)


def test_a_size_without_a_unit_is_misuse(refused, recipe):
    assert refused("make", recipe, "--cache-size", "20")[0] == 2
