import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.core.errors import MisuseError
from piston.pipeline.gates import parse_gate


def verdict(text, **values):
    return parse_gate(text).judge({name.replace("__", "."): value for name, value in values.items()}).is_met


@pytest.mark.parametrize(
    ("text", "name", "value", "is_met"),
    [
        ("verify", "verify", 1.0, True),
        ("verify", "verify", 0.0, False),
        ("bundle.size <= 200MB", "bundle.size", 200e6, True),
        ("bundle.size < 200MB", "bundle.size", 200e6, False),
        ("bundle.size<=1MiB", "bundle.size", 2**20 + 1, False),
        ("int8 >= 95%", "int8", 0.95, True),
        ("int8 >= 95%", "int8", 0.9499, False),
        ("eval.ppl <= 2%", "eval.ppl_change", 0.02, True),
        ("eval.ppl <= 2%", "eval.ppl_change", 0.021, False),
        ("eval.ppl <= 30", "eval.ppl", 29.0, True),
        ("eval.top1 >= 99%", "eval.top1", 0.98, False),
        ("eval.kl <= 0.02", "eval.kl", 0.01, True),
        ("bench.tpot.p50 <= 20ms", "bench.tpot.p50", 0.021, False),
        ("bench.peak.p50 <= 1GiB", "bench.peak.p50", 2.0**30, True),
        ("bench.decode.p50 >= 40tokens/s", "bench.decode.p50", 41.0, True),
        ("bench.tpot.p50 <= 5% over baseline", "bench.tpot.p50.over", 0.06, False),
    ],
)
def test_a_gate_holds_or_not(text, name, value, is_met):
    gate = parse_gate(text)
    assert (gate.name, gate.judge({name: value}).is_met) == (name, is_met)


def test_what_was_not_measured_is_not_met():
    result = parse_gate("int8 >= 95%").judge({})
    assert (result.is_met, result.value, result.message) == (False, None, "int8 was not measured")
    assert not parse_gate("int8 >= 95%").judge({"int8": math.nan}).is_met


@pytest.mark.parametrize(
    "text",
    [
        "",
        "verify <= 1",
        "bundle.size <= 200",
        "bundle.size <= 200ms",
        "bundle.size == 200MB",
        "int8 >= 95",
        "eval.nothing <= 2%",
        "eval.kl <= 2%",
        "eval.ppl <= 2% over baseline",
        "bench.tpot <= 20ms",
        "bench.tpot.p50 <= 20MB",
        "bench.decode.p50 <= 5% over baseline",
        "bench.tpot.p50 >= 5% over baseline",
        "bench.tpot.p50 <= 5% under baseline",
        "bench.tpot.p51 <= 20ms",
        "bench.nothing.p50 <= 5ms",
        "bundle.size <= -1MB",
        "bundle.size <= nanMB",
        "bundle.size <= " + "9" * 400 + "MB",
    ],
)
def test_what_names_no_figure_in_its_unit_is_refused(text):
    with pytest.raises(MisuseError):
        parse_gate(text)


@given(st.text(max_size=60))
def test_any_text_is_a_gate_or_misuse(text):
    try:
        gate = parse_gate(text)
    except MisuseError:
        return
    assert not gate.judge({}).is_met
