import dataclasses

import numpy as np
import pytest
from benched import OPTIONS, system_of
from page_outline import Outline

from piston.bench.fingerprint import take_fingerprint
from piston.bench.page import page_of
from piston.bench.report import Report, Run
from piston.bench.scaling import growth_rows, growth_verdicts, line_through
from piston.core.statistics import ConfidenceInterval

LENGTHS = (128, 512, 1024, 2048, 4000)


def system(name="own", *, prefill, decode, size=200, load=0.2):
    """A system whose prompt takes `prefill(length)` seconds and each further token `decode(length)`."""
    settings = []
    for length in LENGTHS:
        run = Run(prompt_len=length, times=tuple(prefill(length) + decode(length) * np.arange(4)), parts={})
        (measured,) = system_of((run, run), gen_len=4, prompt_len=length).settings
        full = {
            name: dict.fromkeys(("p50", "p90", "p95", "p99"), found["p50"]) for name, found in measured.metrics.items()
        }
        settings.append(dataclasses.replace(measured, metrics=full))
    metrics = {"load": dict.fromkeys(("p50", "p90", "p95", "p99"), ConfidenceInterval(load))}
    return dataclasses.replace(
        system_of((run, run), name, 4, 4000), settings=tuple(settings), metrics=metrics, size_bytes=size * 10**6
    )


def report_of(*systems):
    return Report(machine=take_fingerprint(2), options=OPTIONS, systems=systems, piston="1", date="today")


def as_it_should(name="own", **changes):
    return system(name, prefill=lambda n: 5e-4 * n, decode=lambda n: 0.008 + 5e-6 * n, **changes)


def test_cost_that_grows_as_it_should_is_called_flat_and_linear():
    prefill, decode = growth_verdicts(report_of(as_it_should()))
    assert "prefill per token is flat: 0.5 ms at 512 tokens, 0.5 at 4,000" in prefill
    assert "a decode step is linear in context: 8 ms and +5 ms for each 1,000 tokens" in decode


def test_quadratic_cost_is_not():
    prefill, decode = growth_verdicts(
        report_of(system(prefill=lambda n: 2e-4 * n + 2e-7 * n * n, decode=lambda n: 0.004 + 4e-9 * n * n))
    )
    assert "prefill per token is not flat" in prefill
    assert "a decode step is not linear" in decode


def test_a_short_prompt_that_pays_what_every_call_costs_is_no_sign_of_growth():
    dear = system(prefill=lambda n: 5e-4 * n + (0.2 if n < 512 else 0), decode=lambda n: 0.01)
    assert "prefill per token is flat" in growth_verdicts(report_of(dear))[0]


@pytest.mark.parametrize(("loads", "verdict"), [((0.1, 0.2, 0.3), "is linear"), ((0.1, 0.4, 0.3), "is not linear")])
def test_loading_is_judged_over_three_sizes(loads, verdict):
    systems = [
        as_it_should(name, size=size, load=load) for name, size, load in zip("abc", (100, 200, 300), loads, strict=True)
    ]
    assert f"Loading {verdict} in size" in growth_verdicts(report_of(*systems))[-1]
    assert not any("Loading" in verdict for verdict in growth_verdicts(report_of(*systems[:2])))


def test_a_line_through_points_on_a_line_is_that_line():
    line = line_through([1, 2, 4], [5, 7, 11])
    assert (line.start, line.slope, line.worst) == pytest.approx((3, 2, 0))
    assert line.is_linear


def test_rows_have_a_value_for_each_context_and_size_and_load():
    heads, prefill, decode = growth_rows(report_of(as_it_should()))
    assert heads == ["tokens of context", "128", "512", "1,024", "2,048", "4,000", "size, MB", "load, ms"]
    assert prefill == ["own: prefill, ms a token", *["0.500"] * 5, "200", "200"]
    assert decode[:3] == ["own: decode, ms a token", "8.64", "10.56"]


def test_the_page_plots_prefill_decode_and_loading_and_says_what_they_show():
    systems = [as_it_should(name, size=100 * (index + 1), load=0.1 * (index + 1)) for index, name in enumerate("abc")]
    page = page_of(report_of(*systems))
    for name in ("growth-prefill", "growth-decode", "growth-load"):
        assert f'id="{name}-title"' in page
    assert "prefill per token is flat" in page
    assert "Loading is linear in size" in page
    Outline(page)
