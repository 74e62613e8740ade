"""The table of scripts/bench_rivals.py, from reports that were never measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from benched import OPTIONS, noisy_runs, system_of

from piston.runtime.bench.fingerprint import take_fingerprint
from piston.runtime.bench.report import Report

# Seconds a token: the bundles, then rivals that are slower by a known factor.
SPEEDS = {"w8a8": 0.010, "w8": 0.011, "w4": 0.008, "openvino-int8": 0.025, "genai-int8": 0.012, "genai-int4": 0.010}


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[3] / "scripts/bench_rivals.py"
    spec = importlib.util.spec_from_file_location("bench_rivals", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(script, tmp_path):
    systems = [
        system_of(noisy_runs(np.random.default_rng(seed), 9, seconds), name)
        for seed, (name, seconds) in enumerate(SPEEDS.items())
    ]
    report = Report(machine=take_fingerprint(2), options=OPTIONS, systems=tuple(systems), piston="1", date="today")
    (tmp_path / "prompt.json").write_text(json.dumps(report.to_json()), encoding="utf-8")
    script.write_table(tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


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
def test_the_best_is_the_lowest_time_and_the_highest_speed(script, metric, wanted):
    rng = np.random.default_rng(0)
    systems = [system_of(noisy_runs(rng, 3, 0.01 * (1 + index)), name) for index, name in enumerate(("quick", "slow"))]
    assert script.best(systems, metric).name == wanted
    assert script.best(systems[::-1], metric).name == wanted


def test_every_goal_names_a_stage_and_systems_that_there_are(script):
    for goal in script.GOALS:
        assert goal.stage in script.STAGES
        assert set(goal.ours) <= set(script.ALL)
        assert set(goal.theirs) <= set(script.RIVALS)
