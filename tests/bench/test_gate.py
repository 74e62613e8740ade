import dataclasses
import itertools

import numpy as np
import pytest
from benched import OPTIONS, noisy_runs, system_of

from piston.bench.baseline import Reference
from piston.bench.fingerprint import take_fingerprint
from piston.bench.gate import (
    FIGURES,
    change,
    check_measured,
    false_alarm,
    fewest_samples,
    holm,
    judge,
    strictest,
)
from piston.bench.metrics import of_run, summary
from piston.bench.report import Measured, Report, Run
from piston.bench.workload import Setting
from piston.core.errors import MisuseError
from piston.core.gates import parse_gate as parse

MACHINE = take_fingerprint(2)
NAMED = Setting(1, 8, 16)


def parse_gate(text):
    return parse(text, FIGURES)


def report_of(runs):
    return Report(machine=MACHINE, options=OPTIONS, systems=(system_of(runs),))


def verdicts(here, there, *texts, alpha=0.05):
    reference = Reference(path="base.json", earlier=report_of(there))
    return judge([parse_gate(text) for text in texts], report_of(here), reference, alpha)


@pytest.mark.parametrize("seed", range(8))
def test_a_slowdown_of_a_tenth_fails_a_bound_of_a_twentieth(seed):
    rng = np.random.default_rng(seed)
    (gate,) = verdicts(noisy_runs(rng, 10, 0.011), noisy_runs(rng, 10, 0.010), "tpot.p50<=105%")
    assert not gate.is_met
    assert gate.value == pytest.approx(0.10, abs=0.04)
    assert gate.p_value < 0.01


def test_a_speedup_never_fails():
    rng = np.random.default_rng(0)
    (gate,) = verdicts(noisy_runs(rng, 10, 0.009), noisy_runs(rng, 10, 0.010), "tpot.p50<=100%")
    assert gate.is_met
    assert gate.value < 0
    assert gate.p_value > 0.5


def test_equal_runs_fail_about_as_often_as_the_gates_state():
    """200 pairs of equal runs under a bound that noise often passes: the stated chance is the share that fails."""
    rng = np.random.default_rng(11)
    failed, stated = 0, 0.0
    for _ in range(200):
        sides = [noisy_runs(rng, 6, noise=0.05) for _ in range(2)]
        (gate,) = verdicts(*sides, "tpot.p50<=101%", alpha=0.10)
        failed += not gate.is_met
        stated += gate.false_alarm
    assert stated / 200 == pytest.approx(0.10, abs=0.02)
    assert 9 <= failed <= 32  # 20 to expect; outside in one of 200 such tests


def test_a_bound_far_outside_the_noise_states_a_lower_chance_than_alpha_and_equal_runs_pass():
    rng = np.random.default_rng(12)
    gates = [verdicts(noisy_runs(rng, 10), noisy_runs(rng, 10), "tpot.p50<=105%")[0] for _ in range(60)]
    assert all(gate.is_met for gate in gates)
    assert np.mean([gate.false_alarm for gate in gates]) < 0.001


def test_many_gates_together_fail_equal_runs_no_more_often_than_alpha():
    rng = np.random.default_rng(13)
    texts = ("tpot.p50<=100%", "ttft.p50<=100%", "total.p50<=100%", "total.p90<=100%")
    rounds = 100
    failed = sum(
        not all(gate.is_met for gate in verdicts(noisy_runs(rng, 8), noisy_runs(rng, 8), *texts, alpha=0.10))
        for _ in range(rounds)
    )
    assert failed <= 19  # at most 10 to expect; more in one of 500 such tests


def test_a_change_that_may_be_chance_passes_and_says_so():
    rng = np.random.default_rng(3)
    (gate,) = verdicts(noisy_runs(rng, 4, 0.0103, noise=0.2), noisy_runs(rng, 4, 0.01, noise=0.2), "tpot.p50<=101%")
    assert gate.value > 0.01
    assert gate.is_met
    assert "raise --repeats" in gate.message


def test_the_p_value_is_that_of_all_assignments():
    values = [4.0, 5.0, 3.5, 6.0, 1.0, 2.0, 3.0, 5.5]
    found = change([np.array([value]) for value in values[:4]], [np.array([value]) for value in values[4:]], 50)
    ratios = [
        np.median([values[index] for index in chosen]) / np.median([values[index] for index in {*range(8)} - {*chosen}])
        for chosen in itertools.combinations(range(8), 4)
    ]
    actual = np.median(values[:4]) / np.median(values[4:])
    assert found.value == pytest.approx(actual - 1)
    assert found.p_value == pytest.approx(np.mean(np.array(ratios) >= actual - 1e-9), abs=0.02)


def test_holm_is_that_of_the_textbook():
    """Four hypotheses at 0.05: 0.005 <= 0.05/4, 0.01 <= 0.05/3, 0.03 > 0.05/2, and all after it stand."""
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == pytest.approx([0.05 / 3, 0, 0, 0.05 / 4])
    assert holm([], 0.05) == []


def test_false_alarms_are_counted_above_the_bound_only():
    found = change([np.array([v]) for v in range(10, 20)], [np.array([v]) for v in range(10, 20)], 50)
    assert false_alarm(found, 10.0, 0.05) == 0
    assert false_alarm(found, -1.0, 0.05) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize(
    ("text", "name", "bound"),
    [
        ("tpot<=105%", "tpot.p50", 0.05),
        ("ttft.p95 <= 200 ms", "ttft.p95", 0.2),
        ("peak<=400MB", "peak.p50", 4e8),
        ("decode>=40tokens/s", "decode.p50", 40),
        ("calibrate.peak.p90<=1GiB", "calibrate.peak.p90", 2**30),
    ],
)
def test_a_figure_without_a_quantile_is_its_median(text, name, bound):
    gate = parse_gate(text)
    assert (gate.metric.name, gate.bound) == (name, pytest.approx(bound))


@pytest.mark.parametrize("text", ["tpot.p42<=5ms", "speed<=105%", "decode>=105%", "export.tpot<=5ms"])
def test_figures_that_are_not_there_are_refused(text):
    with pytest.raises(MisuseError):
        parse_gate(text)


def test_a_figure_that_is_not_measured_cannot_be_bounded():
    with pytest.raises(MisuseError, match="raise --starts"):
        check_measured(parse_gate("load<=2s"), dataclasses.replace(OPTIONS, starts=0), [NAMED])
    with pytest.raises(MisuseError, match="raise --gen-len"):
        check_measured(parse_gate("tpot<=2s"), OPTIONS, [Setting(1, 8, 1)])


def test_a_relative_bound_that_no_shuffle_could_pass_is_refused():
    few = dataclasses.replace(OPTIONS, repeats=3)
    with pytest.raises(MisuseError, match="raise --repeats"):
        check_measured(parse_gate("tpot<=105%"), few, [NAMED])
    check_measured(parse_gate("tpot<=5ms"), few, [NAMED])


def test_absolute_bounds_judge_the_figure_itself():
    runs = noisy_runs(np.random.default_rng(0), 10, 0.010)
    slow, fast = verdicts(runs, runs, "tpot<=9ms", "tpot<=11ms")
    assert (slow.is_met, fast.is_met) == (False, True)
    assert slow.p_value is None
    assert "10" in slow.message


def spoken(num_tokens):
    """The report of ten runs of speech, with segments if there are tokens."""
    setting = Setting(1, 1, 0, task="automatic-speech-recognition", audio=20.0)
    times = (1.0, 2.0) if num_tokens else (2.0,)
    parts = {"encode": 0.5, "audio": 20.0, "tokens": float(num_tokens)}
    runs = tuple(Run(prompt_len=1, times=times, parts=parts) for _ in range(10))
    measured = Measured(setting=setting, runs=runs, metrics=summary([of_run(run, setting) for run in runs], 0))
    system = dataclasses.replace(system_of(noisy_runs(np.random.default_rng(0), 1)), settings=(measured,))
    return Report(machine=MACHINE, options=OPTIONS, systems=(system,))


def test_a_gate_on_a_figure_that_a_side_does_not_have_is_not_met():
    texts = ("rtf<=1", "decode>=1tokens/s", "first_segment<=500%")
    said, silent = spoken(9), spoken(0)
    for here, there, expected in (
        (said, said, [True, True, True]),
        (silent, said, [True, False, False]),
        (said, silent, [True, True, False]),
    ):
        found = judge([parse_gate(text) for text in texts], here, Reference(path="base.json", earlier=there), 0.05)
        assert [gate.expression for gate in found] == list(texts)
        assert [gate.is_met for gate in found] == expected
        assert all(gate.message.endswith("was not measured") for gate in found if not gate.is_met)


@pytest.mark.parametrize("num_bounds", [1, 3, 4, 11])
def test_with_the_fewest_runs_allowed_a_doubled_time_fails_every_bound(num_bounds):
    texts = [
        f"{metric}.p{percent}<={bound}% over baseline"
        for bound in (1, 2)
        for percent in (50, 90)
        for metric in ("ttft", "tpot", "total")
    ]
    gates = [parse_gate(text) for text in texts[:num_bounds]]
    fewest = fewest_samples(strictest(gates, lambda _: 1, 0.05))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = verdicts(noisy_runs(rng, fewest, 0.02), noisy_runs(rng, fewest, 0.01), *texts[:num_bounds])
        assert not any(gate.is_met for gate in found)


def test_every_place_of_a_relative_bound_counts():
    gates = [parse_gate(text) for text in ("tpot<=105%", "load<=105%", "ttft<=1s")]
    assert strictest(gates, lambda gate: 1 if gate.metric.metric == "load" else 4, 0.05) == pytest.approx(0.05 / 5)
