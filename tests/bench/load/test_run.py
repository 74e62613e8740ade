"""Driving a server, and judging whether a run is a measurement."""

import numpy as np
import pytest
from loaded import echoing, run_of, sent_at, setting_of

from piston.bench.load.client import Endpoint
from piston.bench.load.run import run_load, why_invalid
from piston.bench.load.setting import LoadWork
from piston.bench.metrics import of_load
from piston.bench.report import MeasuredLoad
from piston.core.errors import EngineError


@pytest.fixture(scope="module")
def echo():
    with echoing() as url:
        yield Endpoint(url=url, model="echo")


def together(run):
    """The most requests in flight at once."""
    spans = [(item.at, item.at + item.times[-1]) for item in run.sent]
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


def test_a_closed_loop_has_so_many_requests_at_a_time_and_never_more(echo):
    setting, ticks = setting_of(concurrency=3, requests=20, gen_len=(30, 30)), []
    run = run_load(echo, setting, LoadWork(setting, 1000).requests(0), "echo", ticks.append)
    assert together(run) == 3
    assert (len(run.sent), ticks) == (20, list(range(1, 21)))
    assert all(len(item.times) == item.num_tokens == 30 for item in run.sent)
    assert (run.invalid, run.client_seconds > 0) == (None, True)


def test_an_open_loop_sends_when_requests_are_due(echo):
    setting = setting_of(rate=50.0, requests=20)
    requests = LoadWork(setting, 1000).requests(0)
    run = run_load(echo, setting, requests, "echo", lambda _: None)
    assert [item.at for item in run.sent] == pytest.approx([request.due for request in requests], abs=1e-3)


def test_the_long_prompt_comes_in_addition(echo):
    setting = setting_of(concurrency=2, requests=10, long_prompt=100)
    run = run_load(echo, setting, LoadWork(setting, 1000).requests(0), "echo", lambda _: None)
    assert [item.prompt_len for item in run.sent if item.is_long] == [100]
    before = sum(item.at < run.sent[-1].at for item in run.sent)
    assert 3 <= before <= 8  # about half of the others have begun


def test_a_server_that_is_not_there_is_told():
    setting = setting_of()
    with pytest.raises(EngineError, match="toy: cannot connect"):
        run_load(Endpoint(url="http://127.0.0.1:9", model="m"), setting, LoadWork(setting, 9).requests(0), "toy", print)


def served(rng, load, *, requests=64, servers=8):
    """Requests of a queue M/M/c at this load, first come first served."""
    due = np.cumsum(rng.exponential(1 / (servers * load), requests))
    free, found = np.zeros(servers), []
    for at in due:
        which = int(free.argmin())
        free[which] = max(free[which], at) + rng.exponential(1.0)
        found.append(sent_at(float(at), float(free[which] - at)))
    return found


def test_a_queue_that_grows_makes_a_run_invalid_and_one_that_keeps_up_does_not():
    rng, setting = np.random.default_rng(5), setting_of(rate=1.0)
    kept_up = [why_invalid(served(rng, 0.6), setting) is None for _ in range(300)]
    too_much = [why_invalid(served(rng, 2.0), setting) is not None for _ in range(300)]
    assert np.mean(kept_up) > 0.9
    assert np.mean(too_much) > 0.9


def test_one_run_in_which_the_queue_grew_by_chance_does_not_make_a_setting_invalid_but_a_refusal_does():
    good, grown = run_of([sent_at(0.0, 0.1)]), run_of([sent_at(0.0, 0.1)], invalid="the queue grew")
    refused = run_of([sent_at(0.0, problem="HTTP 429")], invalid="1 of 1 requests were refused")

    def judged(*runs):
        return MeasuredLoad(setting=setting_of(rate=1.0), runs=runs, metrics={}).invalid

    assert judged(good, good, good, grown) is None
    assert judged(good, grown) == "the queue grew (1 of 2 runs)"
    assert judged(good, good, good, refused) == "1 of 1 requests were refused (1 of 4 runs)"


def test_a_refusal_makes_a_run_invalid_in_either_loop():
    sent = [sent_at(0.0, 0.1), sent_at(0.0, problem="HTTP 429: too much")]
    for setting in (setting_of(), setting_of(rate=1.0)):
        assert why_invalid(sent, setting) == "1 of 2 requests were refused"


def test_figures_of_a_run_are_vllms():
    run = run_of(
        [
            sent_at(0.0, 0.1, 0.2, 0.4),  # TPOT 0.15
            sent_at(0.5, 0.3, 0.5, num_tokens=5),  # three tokens came without text of their own: TPOT 0.05
            sent_at(0.6, problem="HTTP 429"),
            sent_at(0.6, 1.0, 3.4, is_long=True),
        ],
        seconds=4.0,
        engine_seconds=3.0,
    )
    found = of_load(run, setting_of(slo="ttft<200ms"))
    assert found["ttft"].tolist() == [0.1, 0.3]
    assert found["tpot"].tolist() == pytest.approx([0.15, 0.05])
    assert found["e2el"].tolist() == [0.4, 0.5]
    assert found["itl"].tolist() == pytest.approx([0.1, 0.2, 0.2])
    assert found["throughput"].tolist() == [(3 + 5 + 2) / 4]
    assert (found["requests"].tolist(), found["goodput"].tolist()) == ([0.5], [0.25])
    assert found["attainment"].tolist() == pytest.approx([1 / 3])  # a refused request was not answered in time
    assert found["efficiency"].tolist() == [0.75]


def test_the_stall_is_the_slow_gap_over_the_usual_one():
    times = np.cumsum([0.01] * 90 + [0.05] * 10)
    assert of_load(run_of([sent_at(0.0, *times)]), setting_of())["stall"].tolist() == pytest.approx([5.0])
