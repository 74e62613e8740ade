import dataclasses

import numpy as np
import pytest
from benched import noisy_runs, system_of

from piston.bench.metrics import METRICS, names_of, of_run
from piston.bench.ratios import ratios_of
from piston.bench.report import Run
from piston.bench.workload import Setting

RUN = Run(prompt_len=100, times=(0.5, 0.6, 0.8, 0.9), parts={"sample": 0.04, "tokenize": 0.002})


def test_every_metric_of_a_run_is_what_its_name_says():
    found = {name: values.tolist() for name, values in of_run(RUN, Setting(2, 100, 4)).items()}
    assert found["ttft"] == [0.5]
    assert found["tpot"] == pytest.approx([0.4 / 3])
    assert found["itl"] == pytest.approx([0.1, 0.2, 0.1])
    assert found["total"] == [0.9]
    assert found["prefill"] == pytest.approx([2 * 100 / 0.5])
    assert found["decode"] == pytest.approx([2 * 3 / 0.4])
    assert found["sample"] == pytest.approx([0.04 / (2 * 4)])
    assert found["tokenize"] == [0.002]


def test_an_encoder_decoder_has_the_time_of_its_encoder_in_place_of_a_prefill():
    run = dataclasses.replace(RUN, parts={"encode": 0.3})
    found = of_run(run, setting := Setting(2, 100, 4, task="text2text-generation", num_beams=4))
    assert found["encode"] == [0.3]
    assert found["decode"] == pytest.approx([2 * 3 / 0.4])  # tokens of answers, not of beams
    assert set(found) | {"tokenize"} == names_of(setting)  # nobody times how a search chooses
    assert names_of(dataclasses.replace(setting, num_beams=1)) == names_of(setting) | {"sample"}


def test_speech_is_measured_by_the_seconds_of_its_audio():
    run = Run(prompt_len=1, times=(2.0, 3.0, 4.0), parts={"encode": 1.5, "audio": 20.0, "tokens": 50.0})
    found = of_run(run, setting := Setting(1, 1, 0, task="automatic-speech-recognition", audio=20.0))
    assert {name: float(values[0]) for name, values in found.items()} == {
        "rtf": 0.2,
        "first_segment": 2.0,
        "total": 4.0,
        "encode": 1.5,
        "decode": 20.0,
    }
    assert set(found) == names_of(setting)
    silent = Run(prompt_len=1, times=(4.0,), parts={"encode": 1.5, "audio": 20.0, "tokens": 0.0})
    assert set(of_run(silent, setting)) == {"rtf", "total", "encode"}


def test_one_token_has_no_decode_figures():
    found = of_run(Run(prompt_len=4, times=(0.5,), parts={}), Setting(1, 4, 1))
    assert set(found) == {"ttft", "total", "prefill"}


def test_every_metric_of_a_run_is_known():
    assert set(of_run(RUN, Setting(2, 100, 4))) <= set(METRICS)


def test_a_system_of_half_the_time_is_twice_as_good_whatever_the_unit():
    rng = np.random.default_rng(0)
    ratios = ratios_of([system_of(noisy_runs(rng, 20, 0.01)), system_of(noisy_runs(rng, 20, 0.02), "rival")])
    assert {ratio.metric for ratio in ratios} == {"ttft", "tpot", "total", "prefill", "decode"}
    for ratio in ratios:
        assert ratio.rival == "rival"
        assert ratio.ratio.low < 2 < ratio.ratio.high
        assert ratio.ratio.value == pytest.approx(2, rel=0.03)


def test_what_slows_both_of_a_pair_drops_out_of_the_ratio():
    """A machine that drifts threefold within the run moves no ratio."""
    drift = np.linspace(1, 3, 10)
    ours = [Run(prompt_len=4, times=(d, 2 * d), parts={}) for d in drift]
    theirs = [Run(prompt_len=4, times=(1.5 * d, 3 * d), parts={}) for d in drift]
    sides = [system_of(runs, name, gen_len=2, prompt_len=4) for runs, name in ((ours, "own"), (theirs, "rival"))]
    for ratio in ratios_of(sides):
        assert (ratio.ratio.value, ratio.ratio.low, ratio.ratio.high) == pytest.approx((1.5, 1.5, 1.5))
