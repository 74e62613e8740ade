import functools
import json
import sys
from pathlib import Path

import jsonschema
import pytest
from staged import FakeStages, write_staged_recipe

from piston.pipeline import stage_cli
from piston.pipeline.stages import measure_stages

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/bench.json").read_text(encoding="utf-8"))


@pytest.fixture
def recipe(tmp_path):
    return write_staged_recipe(tmp_path / "a")


@pytest.fixture
def environment(tmp_path):
    """A virtual environment with another Piston."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path / "venv"


@pytest.fixture
def bench(piston, recipe, monkeypatch):
    """bench(*words, slower={python: factor}): `piston bench` of the recipe; no stage is run."""

    def run(*words, slower=None, noise=0.02):
        fake = functools.partial(measure_stages, runner=FakeStages(slower, noise))
        monkeypatch.setattr(stage_cli, "measure_stages", fake)
        return piston("bench", recipe, "--quiet", *words)

    return run


def json_of(result):
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_every_stage_is_in_the_report_of_the_published_schema(bench):
    (system,) = json_of(bench("--json"))["systems"]
    assert [stage["name"] for stage in system["stages"]] == [
        *("export model.gguf", "calibrate w8a8", "build w8a8 ort-cpu")
    ]
    assert {len(stage["runs"]) for stage in system["stages"]} == {6}
    assert all(stage["metrics"]["peak"]["p50"]["low"] is not None for stage in system["stages"])


def test_the_table_has_a_row_for_each_stage(bench):
    lines = bench().out.splitlines()
    assert any(line.startswith("calibrate w8a8 ") and " MB " in line for line in lines)
    assert any("6 runs after 1 to warm up;" in line for line in lines)


@pytest.mark.parametrize(
    ("figure", "failing"), [("calibrate.seconds", 1), ("build.cpu", 1), ("export.peak.p90", 1), ("export.written", 0)]
)
def test_another_piston_in_turns_shows_what_became_slower_or_larger(bench, environment, figure, failing):
    words = ("--repeats", "6", "--baseline", environment, "--require", f"{figure}<=110%", "--json")
    slow = bench(*words, slower={str(environment / "bin/python"): 0.7})
    found = json_of(slow)
    assert slow.status == failing
    assert [gate["is_met"] for gate in found["gates"]] == [not failing]
    assert found["gates"][0]["place"].startswith(figure.partition(".")[0])
    assert found["baseline"]["kind"] == "environment"


def test_equal_pistons_pass(bench, environment):
    gates = ("--require", "calibrate.seconds<=110%", "--require", "build.peak<=105%")
    assert bench("--baseline", environment, *gates).status == 0


def test_a_file_of_an_earlier_run_is_a_baseline_too(bench, tmp_path):
    (tmp_path / "base.json").write_text(bench("--json").out)
    words = ("--baseline", tmp_path / "base.json", "--require", "calibrate.seconds<=110%")
    assert bench(*words, noise=0.01).status == 0
    result = bench(*words, slower={sys.executable: 1.3})
    assert result.status == 1
    assert "gate not met: calibrate w8a8: calibrate.seconds<=110%: time, p50 changed by +3" in result.err


def test_a_file_of_other_options_is_no_baseline(bench, refused, recipe, tmp_path):
    (tmp_path / "base.json").write_text(bench("--json").out)
    recipe.write_text(recipe.read_text().replace('data = ["rows.txt"]', 'data = ["rows.txt"]\nsamples = 8'))
    gate = ("--baseline", tmp_path / "base.json", "--require", "calibrate.seconds<=110%")
    status, message = refused("bench", recipe, *gate)
    assert status == 2
    assert "ran calibrate w8a8 with --data=rows.txt --scheme=w8a8, this is --data=rows.txt --samples=8" in message


def test_an_absolute_bound_needs_no_baseline(bench):
    assert bench("--require", "build.seconds<=10s", "--repeats", "1").status == 0
    assert bench("--require", "build.peak<=1MB", "--repeats", "1").status == 1


def test_pages_and_comments_show_the_stages(bench, tmp_path):
    bench("--html", tmp_path / "p.html", "--markdown", tmp_path / "p.md", "--repeats", "2")
    page = (tmp_path / "p.html").read_text()
    assert "Stages: time" in page
    assert "Stages: peak memory" in page
    assert "| calibrate w8a8 |" in (tmp_path / "p.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--batch", "2"), "--batch applies to a bundle"),
        (("--profile",), "--profile applies to a bundle"),
        (("--require", "tpot<=5ms"), "is for a bundle; for recipes write export"),
        (("--require", "export.tpot<=5ms"), "export.seconds, export.cpu"),
        (("--require", "export.seconds<=105%"), "give --baseline"),
        (("--repeats", "0"), "--repeats is 0"),
        (("--alpha", "2"), "--alpha is 2"),
        (("--checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_what_a_recipe_has_no_use_for_is_refused(refused, recipe, words, told):
    status, message = refused("bench", recipe, *words)
    assert (status, told in message) == (2, True), message


def test_too_few_runs_to_judge_a_change_are_refused_before_any(refused, recipe, environment):
    gate = ("--baseline", environment, "--require", "export.seconds<=105%", "--repeats", "3")
    assert "--repeats to at least 4" in refused("bench", recipe, *gate)[1]


def test_a_bundle_has_no_stages_and_recipes_no_bundle_beside_them(refused, recipe, bundle, environment):
    small = (bundle, "--prompt-len", "8", "--gen-len", "8")
    assert "give a recipe instead" in refused("bench", *small, "--require", "build.seconds<=1s")[1]
    assert "Name one bundle, or recipes" in refused("bench", bundle, recipe)[1]
    assert "--checkpoint is for recipes" in refused("bench", *small, "--checkpoint", "x")[1]
    against_environment = ("--baseline", environment, "--require", "tpot<=105%")
    assert "is an environment, which only recipes can use" in refused("bench", *small, *against_environment)[1]
    against_bundle = ("--baseline", bundle, "--require", "build.seconds<=105%")
    assert "is a bundle; for recipes give" in refused("bench", recipe, *against_bundle)[1]
