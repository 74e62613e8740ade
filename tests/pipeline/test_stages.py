import dataclasses
import sys
from pathlib import Path

import pytest
from benched import OPTIONS
from staged import FakeStages, write_staged_recipe
from toy_model import write_bundle

from piston.bench.job import Side
from piston.core.console import Progress
from piston.core.errors import EngineError, Error
from piston.pipeline.stage_recipes import jobs_of
from piston.pipeline.stages import measure_stages, run_stage

OURS, THEIRS = Side(name="piston", python="ours"), Side(name="baseline", python="theirs")
ROUNDS = dataclasses.replace(OPTIONS, repeats=2, warmup=1)


@pytest.fixture
def jobs(tmp_path):
    return jobs_of([write_staged_recipe(tmp_path / "a")])


def measured(jobs, scratch, fake, sides=(OURS,), options=ROUNDS):
    scratch.mkdir(exist_ok=True)
    return measure_stages(sides, jobs, options, Progress(quiet=True), scratch, fake)


def test_two_pistons_take_turns_and_every_round_is_whole(jobs, tmp_path):
    fake = FakeStages()
    measured(jobs, tmp_path / "s", fake, (OURS, THEIRS))
    assert [(python, words[0]) for python, words, _ in fake.calls] == 3 * [
        (python, verb) for verb in ("export", "calibrate", "build") for python in ("ours", "theirs")
    ]


def test_rounds_that_warm_up_do_not_count(jobs, tmp_path):
    (system,) = measured(jobs, tmp_path / "s", FakeStages())
    assert [len(stage.runs) for stage in system.stages] == [2, 2, 2]


def test_each_side_reads_what_it_wrote_itself(jobs, tmp_path):
    fake = FakeStages()
    measured(jobs, tmp_path / "s", fake, (OURS, THEIRS))
    for python, words, _ in fake.calls:
        if words[0] != "export":
            side = "piston" if python == "ours" else "baseline"
            assert Path(words[-1]).is_relative_to(tmp_path / "s" / side)
            assert Path(words[-1]).is_dir()


def test_what_later_rounds_write_is_gone(jobs, tmp_path):
    measured(jobs, tmp_path / "s", FakeStages())
    assert sorted(path.name for path in (tmp_path / "s/piston").iterdir()) == [
        *("build-w8a8-ort-cpu", "calibrate-w8a8", "export-model.gguf")
    ]


def test_a_run_has_its_seconds_its_cores_its_memory_and_what_it_wrote(jobs, tmp_path):
    (system,) = measured(jobs, tmp_path / "s", FakeStages(noise=0))
    for stage in system.stages:
        run = stage.runs[0]
        assert run.cpu_seconds == pytest.approx(1.5 * run.seconds)
        assert run.peak_bytes == round(run.seconds * 1e8)
        assert run.written_bytes > len(stage.verb)
        assert stage.metrics["seconds"]["p50"].value == run.seconds


def test_a_stage_that_fails_ends_the_run_in_its_own_words(jobs, tmp_path):
    with pytest.raises(Error, match="`piston export` failed: it broke"):
        measured(jobs, tmp_path / "s", FakeStages(status=1))


def test_a_stage_that_writes_nothing_is_told(jobs, tmp_path):
    def idle(words, directory, python):
        Path(words[1].partition("=")[2]).parent.mkdir(exist_ok=True)
        outcome, cpu = FakeStages()((words[0], f"--output={tmp_path / 'elsewhere'}", "x"), directory, python)
        return outcome, cpu

    with pytest.raises(EngineError, match="should write one directory"):
        measured(jobs, tmp_path / "s", idle)


def test_a_real_command_costs_time_of_cores_and_memory(tmp_path):
    write_bundle(tmp_path / "b")
    outcome, cpu = run_stage(["inspect", "--", "b"], tmp_path, sys.executable)
    assert outcome.status == 0
    assert 0 < cpu < 60
    assert outcome.peak_bytes > 5e6
