import dataclasses
import json

import numpy as np
import pytest
from benched import OPTIONS, contender, noisy_runs, system_of

from piston.bench.baseline import Reference, read_reference
from piston.bench.fingerprint import take_fingerprint
from piston.bench.report import Report
from piston.core.errors import MisuseError
from piston.pipeline.changes import judge_changes
from piston.pipeline.gates import parse_gate

GATE = parse_gate("bench.tpot.p50 <= 5% over baseline")


def runs(seconds, count=10):
    return noisy_runs(np.random.default_rng(int(seconds * 1e6)), count, seconds)


def printed(*systems):
    """What `piston bench --json` prints of these systems."""
    options = dataclasses.replace(OPTIONS, repeats=len(systems[0].settings[0].runs))
    report = Report(machine=take_fingerprint(2), options=options, systems=systems, date="2026-01-01")
    return json.loads(json.dumps(report.to_json()))


def file_of(path, *systems):
    path.write_text(json.dumps(printed(*systems)))
    return read_reference(path)


@pytest.mark.parametrize(("seconds", "is_met"), [(0.0100, True), (0.0103, True), (0.0130, False), (0.0050, True)])
def test_a_gate_over_the_file_of_an_earlier_run_fails_what_became_slower(tmp_path, seconds, is_met):
    before = file_of(tmp_path / "b.json", system_of(runs(0.01)))
    verdict = judge_changes([GATE], printed(system_of(runs(seconds))), before)[GATE.text]
    assert verdict.is_met is is_met
    assert verdict.value == pytest.approx(seconds / 0.01 - 1, abs=0.05)
    assert verdict.expression == GATE.text


def test_a_bundle_is_compared_by_the_runs_that_were_taken_in_turns_with_the_new_ones():
    old = system_of(runs(0.01), name="old")
    rival = dataclasses.replace(system_of(runs(0.001), name="rival"), kind="genai")
    before = Reference(path="old", contender=contender("old"))
    verdict = judge_changes([GATE], printed(system_of(runs(0.013)), old, rival), before)[GATE.text]
    assert not verdict.is_met
    assert verdict.value == pytest.approx(0.3, abs=0.05)


def test_a_change_within_the_noise_does_not_fail(tmp_path):
    noisy = noisy_runs(np.random.default_rng(1), 6, 0.0112, noise=0.4)
    before = file_of(tmp_path / "b.json", system_of(noisy_runs(np.random.default_rng(2), 6, 0.01, noise=0.4)))
    verdict = judge_changes([GATE], printed(system_of(noisy)), before)[GATE.text]
    assert verdict.is_met
    assert verdict.value > GATE.bound
    assert "not significant" in verdict.message


@pytest.mark.parametrize(
    ("old", "said"), [({"gen_len": 32}, "was not measured at"), ({"count": 2}, "cannot show a significant change")]
)
def test_what_cannot_be_compared_does_not_meet_its_gate(tmp_path, old, said):
    gen_len = old.get("gen_len", 16)
    there = noisy_runs(np.random.default_rng(3), old.get("count", 10), gen_len=gen_len)
    before = file_of(tmp_path / "b.json", system_of(there, gen_len=gen_len))
    verdict = judge_changes([GATE], printed(system_of(runs(0.01))), before)[GATE.text]
    assert (verdict.is_met, verdict.value) == (False, None)
    assert said in verdict.message


def test_gates_that_compare_nothing_are_judged_elsewhere(tmp_path):
    before = file_of(tmp_path / "b.json", system_of(runs(0.01)))
    assert judge_changes([parse_gate("bench.tpot.p50 <= 20ms")], {}, before) == {}


def test_a_baseline_that_is_none_is_misuse(tmp_path):
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(MisuseError, match="piston bench"):
        read_reference(tmp_path / "b.json")
