from contextlib import contextmanager

import pytest
from benched import OPTIONS, contender, opener, ticking

from piston.bench import measure as measure_module
from piston.bench.measure import measure
from piston.bench.report import Options
from piston.bench.workload import Setting, Work
from piston.core.console import Progress

QUIET = Progress(quiet=True)
OWN, RIVAL = contender("own"), contender("rival", "ct2")
WORK = Work(Setting(2, 8, 4), vocab_size=500)


def measured(options=OPTIONS, works=(WORK,), log=None, clock=None):
    speeds = {"own": 0.01, "rival": 0.02}
    return measure([OWN, RIVAL], works, options, QUIET, opener(speeds, log=log), clock or ticking())


def test_systems_take_turns_on_the_same_prompts_and_warming_up_does_not_count():
    log = []
    systems = measured(Options(repeats=3, warmup=2, starts=0, threads=2), log=log)
    assert [name for name, _, _ in log] == ["own", "rival"] * 5
    assert all(first[1:] == second[1:] for first, second in zip(log[::2], log[1::2], strict=True))
    assert len({tuple(prompts) for _, prompts, _ in log}) == 5
    assert [len(system.settings[0].runs) for system in systems] == [3, 3]


def test_every_setting_is_measured_in_order():
    works = [WORK, Work(Setting(1, 16, 2), 500)]
    for system in measured(works=works):
        assert [item.setting for item in system.settings] == [work.setting for work in works]
        assert [len(item.runs[0].times) for item in system.settings] == [4, 2]


def test_a_new_process_is_timed_from_outside_and_the_first_of_each_system_only_warms():
    log = []
    systems = measured(Options(repeats=1, warmup=0, starts=2, threads=2), log=log, clock=ticking(0.5))
    for system in systems:
        assert [start.first_token for start in system.starts] == [0.5, 0.5]
        assert [(start.imports, start.load, start.peak_bytes) for start in system.starts] == [(0.1, 0.2, 3e8)] * 2
    starts = log[: 2 * 2 * 3]
    assert [name for name, _, _ in starts] == ["own", "own", "rival", "rival"] * 3
    assert [length for _, _, length in starts] == [1, 4] * 6


def test_systems_are_loaded_for_the_largest_setting():
    limits = []

    def opened(contender, asked):
        limits.append(asked)
        return opener({"own": 0.01, "rival": 0.02})(contender, asked)

    works = [Work(Setting(4, 8, 4), 500), Work(Setting(1, 100, 2), 500)]
    measure([OWN, RIVAL], works, Options(repeats=1, warmup=0, starts=0, threads=3), QUIET, opened)
    assert limits == [{"threads": 3, "max_length": 102, "max_batch": 4}] * 2


def test_medians_are_those_of_the_system():
    own, rival = measured()
    assert own.settings[0].metrics["tpot"]["p50"].value == pytest.approx(0.01, rel=0.05)
    assert rival.settings[0].metrics["tpot"]["p50"].value == pytest.approx(0.02, rel=0.05)


def test_with_and_without_neighbours_takes_turns(monkeypatch):
    beside, seen = [], []

    @contextmanager
    def counted(count):
        beside.append(count)
        yield
        seen.append(len(log))

    monkeypatch.setattr(measure_module, "neighbours", counted)
    log = []
    settings = [Setting(1, length, 4, neighbours=count) for length in (8, 16) for count in (0, 1)]
    systems = measured(Options(repeats=2, warmup=1, starts=0, threads=2), [Work(each, 500) for each in settings], log)
    assert beside == [0, 1] * 3 * 2
    assert seen == [2 * turn for turn in range(1, 13)]  # both systems in each turn
    assert [len(prompts[0]) for _, prompts, _ in log] == [8] * 12 + [16] * 12
    assert [item.setting for item in systems[0].settings] == settings
    assert [len(item.runs) for item in systems[0].settings] == [2] * 4
