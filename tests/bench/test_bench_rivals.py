"""The table of scripts/bench_rivals.py, from reports that were never measured, and which stages it measures again."""

import dataclasses
import importlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from benched import OPTIONS, contender, noisy_runs, system_of
from toy_model import write_bundle

from piston.bench.fingerprint import take_fingerprint
from piston.bench.report import Options, Report
from piston.core.errors import MisuseError

ROOT = Path(__file__).parents[2]
# Seconds a token: the bundles, then rivals that are slower by a known factor.
SPEEDS = {"w8a8": 0.010, "mine": 0.011, "w4": 0.008, "openvino-int8": 0.025, "genai-int8": 0.012, "genai-int4": 0.010}


@pytest.fixture
def rivals_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("rivals_table")


@pytest.fixture
def script(rivals_table):
    return importlib.import_module("bench_rivals")


def write_report(out, name="prompt", repeats=9, **changes):
    systems = [
        system_of(noisy_runs(np.random.default_rng(seed), repeats, seconds), name)
        for seed, (name, seconds) in enumerate(SPEEDS.items())
    ]
    options = dataclasses.replace(OPTIONS, repeats=repeats)
    report = Report(machine=take_fingerprint(2), options=options, systems=tuple(systems), piston="1", date="today")
    report = dataclasses.replace(report, **changes)
    (out / f"{name}.json").write_text(json.dumps(report.to_json()), encoding="utf-8")
    return report


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


@pytest.fixture
def table(rivals_table, tmp_path):
    write_report(tmp_path)
    (tmp_path / "bundles.json").write_text(json.dumps({"w8a8": "w8a8", "mine": "w8", "w4": "w4"}))
    return cells_of(rivals_table.table_of(tmp_path))


def test_the_best_bundle_is_set_against_the_rival_of_each_row(table):
    rows = [row for row in table if row[0] == "int8 decode"]
    assert [(row[1].split()[0], row[2].split()[0]) for row in rows] == [
        ("w8a8", "openvino-int8"),
        ("w8a8", "genai-int8"),
    ]
    ratios = [float(row[3].split("x")[0]) for row in rows]
    assert ratios == pytest.approx([2.5, 1.2], rel=0.04)


def test_a_row_says_whether_its_goal_is_met(table):
    assert [row[5] for row in table if row[0] == "int8 decode"] == ["met", "**missed**"]
    assert [row[4] for row in table if row[0] == "int8 decode"] == ["2.0x", "1.3x"]


def test_of_several_rivals_the_best_is_taken_or_each_where_the_goal_is_of_each(table):
    assert [row[2].split()[0] for row in table if row[0] == "int4 decode"] == ["genai-int4"]
    prefill = [row[2].split()[0] for row in table if row[0] == "prefill 512"]
    assert prefill == ["openvino-int8", "genai-int8", "genai-int4"]


def test_stages_that_were_not_measured_have_no_rows(table):
    assert not any(row[0] in {"peak memory", "batch 4 decode"} for row in table)


@pytest.mark.parametrize(("metric", "wanted"), [("tpot", "quick"), ("decode", "quick")])
def test_the_best_is_the_lowest_time_and_the_highest_speed(rivals_table, metric, wanted):
    rng = np.random.default_rng(0)
    systems = [system_of(noisy_runs(rng, 3, 0.01 * (1 + index)), name) for index, name in enumerate(("quick", "slow"))]
    assert rivals_table.best(systems, metric).name == wanted
    assert rivals_table.best(systems[::-1], metric).name == wanted


def test_every_goal_names_a_stage_and_rivals_that_there_are(script, rivals_table):
    for goal in rivals_table.GOALS:
        assert goal.stage in script.STAGES
        assert set(goal.theirs) <= set(rivals_table.RIVALS)


def test_a_bundle_belongs_to_the_goals_of_its_scheme_whatever_its_name(rivals_table, tmp_path):
    write_report(tmp_path)
    (tmp_path / "bundles.json").write_text(json.dumps({"w8a8": "w4", "mine": "w8+kv8", "w4": "w4"}))
    rows = [row for row in cells_of(rivals_table.table_of(tmp_path)) if row[0] == "int8 decode"]
    assert {row[1].split()[0] for row in rows} == {"mine"}


def test_every_system_has_a_row_of_medians(table):
    heads = next(row for row in table if "decode after 512, tokens/s" in row)
    rows = {row[0]: row for row in table if row[0] in SPEEDS}
    assert set(rows) == set(SPEEDS)
    column = heads.index("decode after 512, tokens/s")
    assert float(rows["genai-int4"][column]) == pytest.approx(100, rel=0.05)


def test_a_missed_goal_is_followed_by_its_limit_from_the_documentation(rivals_table, tmp_path):
    write_report(tmp_path)
    text = rivals_table.table_of(tmp_path)
    limits = rivals_table.limits_of((ROOT / "docs/bench.md").read_text(encoding="utf-8"))
    missed = {row[0] for row in cells_of(text) if row[-1] == "**missed**"}
    assert missed
    for row in missed:
        assert f"- **{row}.** {limits[row]}" in text


def test_the_limits_are_list_items_that_begin_with_the_row(rivals_table):
    text = "- **int4 decode.** It is\n  so.\n- other\n- **peak memory.** Whole.\n\nText"
    assert rivals_table.limits_of(text) == {"int4 decode": "It is so.", "peak memory": "Whole."}


@pytest.mark.parametrize(
    ("ratio", "different", "mark"), [(1.8, 0, "met"), (1.6, 0, "**missed**"), (1.8, 1, "**missed**")]
)
def test_prompt_lookup_meets_its_goal_only_with_the_same_tokens(rivals_table, tmp_path, ratio, different, mark):
    task = {"task": "summarizing", "bundle": "w8a8", "ratio": ratio, "low": ratio, "high": ratio}
    task |= {"different": different, "plain_tokens_per_s": 100.0, "guessed_tokens_per_s": 100.0 * ratio}
    (tmp_path / "speculation.json").write_text(json.dumps({"tasks": [task]}))
    write_report(tmp_path)
    (row,) = [row for row in cells_of(rivals_table.table_of(tmp_path)) if row[0] == "prompt lookup, summarizing"]
    assert row[-1] == mark
    assert ("differ" in row[3]) == bool(different)


def test_a_stage_of_the_same_systems_and_enough_runs_is_not_measured_again(script, tmp_path):
    write_report(tmp_path, repeats=6)
    path, systems = tmp_path / "prompt.json", [contender(name) for name in SPEEDS]
    wanted = Options(repeats=6, warmup=1, starts=0, threads=2)
    assert script.is_measured(path, systems, wanted, is_making=False)
    assert not script.is_measured(path, systems, dataclasses.replace(wanted, repeats=7), is_making=False)
    assert not script.is_measured(path, systems[:-1], wanted, is_making=False)
    changed = [dataclasses.replace(systems[0], digest="other"), *systems[1:]]
    assert not script.is_measured(path, changed, wanted, is_making=False)
    assert not script.is_measured(tmp_path / "none.json", systems, wanted, is_making=False)


def test_bundles_are_named_by_their_directories_and_their_schemes_written_down(script, tmp_path):
    (tmp_path / "rivals.json").write_text('{"rivals": []}')
    bundles = [tmp_path / "a/one", tmp_path / "b/one"]
    for bundle in bundles:
        bundle.parent.mkdir()
        write_bundle(bundle)
    arguments = Namespace(bundles=bundles[:1], rivals=tmp_path / "rivals.json", out=tmp_path, skip=[], speculate=None)
    own, rivals = script.contenders(arguments)
    assert ([item.name for item in own], rivals) == (["one"], [])
    assert json.loads((tmp_path / "bundles.json").read_text()) == {"one": "fp"}
    arguments.bundles = bundles
    with pytest.raises(MisuseError, match="two have one name"):
        script.contenders(arguments)
