import argparse
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.core.errors import MisuseError
from piston.core.gates import GateResult, Metric, add_gate_arguments, from_older, gates_of, parse_gate, tell_gates

METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="ppl", described="perplexity", percent_of="reference"),
        Metric(name="kl", described="mean KL divergence", needs_reference=True),
        Metric(name="top1", described="agreement", unit="share", is_better_high=True, needs_reference=True),
        Metric(name="tpot.p50", described="time per token", unit="s", percent_of="baseline"),
        Metric(name="peak", described="peak memory", unit="bytes", percent_of="baseline"),
        Metric(name="decode", described="decode", unit="tokens/s", is_better_high=True),
    )
}


@pytest.mark.parametrize(
    ("text", "quantity", "bound"),
    [
        ("ppl<=2%", "ppl_change", 0.02),
        ("ppl<=30", "ppl", 30),
        (" ppl <= 0.5 % ", "ppl_change", 0.005),
        ("kl<=0.02", "kl", 0.02),
        ("kl<2e-2", "kl", 0.02),
        ("kl<=.02", "kl", 0.02),
        ("top1>=99%", "top1", 0.99),
        ("top1>0.99", "top1", 0.99),
        ("tpot.p50<=20ms", "tpot.p50", 0.02),
        ("tpot.p50 <= 105%", "tpot.p50_change", 0.05),
        ("tpot.p50<=5% over baseline", "tpot.p50_change", 0.05),
        ("tpot.p50<=100%", "tpot.p50_change", 0),
        ("peak<=1.5GiB", "peak", 1.5 * 2**30),
        ("peak<=400mb", "peak", 4e8),
        ("decode >= 40tokens/s", "decode", 40),
    ],
)
def test_an_expression_names_a_quantity_and_a_bound(text, quantity, bound):
    gate = parse_gate(text, METRICS)
    assert (gate.quantity, gate.bound) == (quantity, pytest.approx(bound))


@pytest.mark.parametrize(
    ("text", "value", "is_met"),
    [
        ("ppl<=30", 29.9, True),
        ("ppl<=30", 30, True),
        ("ppl<=30", 30.1, False),
        ("ppl<30", 30, False),
        ("top1>=99%", 0.991, True),
        ("top1>=99%", 0.99, True),
        ("top1>=95%", 0.95, True),
        ("top1>=99%", 0.989, False),
        ("top1>99%", 0.99, False),
        ("ppl<=30", math.nan, False),
        ("top1>=99%", math.nan, False),
        ("ppl<=30", math.inf, False),
        ("ppl<=2%", -0.5, True),
    ],
)
def test_the_condition_says_what_must_hold(text, value, is_met):
    gate = parse_gate(text, METRICS)
    assert gate.judge({gate.quantity: value}).is_met is is_met


@pytest.mark.parametrize(
    ("text", "value", "line"),
    [
        ("ppl<=2%", 0.031, "ppl<=2%: perplexity is 3.10% above the reference's"),
        ("ppl<=2%", -0.01, "ppl<=2%: perplexity is 1.00% below the reference's"),
        ("top1>=99%", 0.5, "top1>=99%: agreement is 50.00%"),
        ("kl<=0.02", 0.25, "kl<=0.02: mean KL divergence is 0.25"),
        ("tpot.p50<=20ms", 0.03, "tpot.p50<=20ms: time per token is 30.0 ms"),
    ],
)
def test_a_verdict_is_one_line_with_the_value(text, value, line):
    gate = parse_gate(text, METRICS)
    assert str(gate.judge({gate.quantity: value})) == line


def test_what_was_not_measured_is_not_met():
    result = parse_gate("kl<=1", METRICS).judge({"ppl": 3.0})
    assert (result.is_met, result.value, result.message) == (False, None, "mean KL divergence was not measured")


@pytest.mark.parametrize(
    "text",
    ["", "ppl", "ppl<=", "<=2%", "ppl=2", "ppl==2", "pppl<=2", "ppl<=2%%", "ppl<=-2%", "ppl<=x", "ppl<=nan", "a<1<2"],
)
def test_what_cannot_be_read_is_misuse_naming_the_figures(text):
    with pytest.raises(MisuseError, match="Cannot read --require") as caught:
        parse_gate(text, METRICS)
    assert all(name in str(caught.value) for name in ("ppl", "kl", "top1", "tpot", "peak", "decode"))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("top1<=99%", "top1>=99%"),
        ("ppl>2%", "ppl<=2%"),
        ("tpot.p50>=5% over baseline", "tpot.p50<=5% over baseline"),
        ("kl<=2%", "bounded as 0.02"),
        ("kl<=2s", "bounded as 0.02"),
        ("top1>=99", "at most 1"),
        ("ppl<=1e999", "too large; write a smaller"),
        ("ppl<=2% over baseline", "bounded as"),
        ("decode>=105%", "bounded as 40tokens/s"),
        ("tpot.p50<=20", "20ms or 1.5s"),
        ("tpot.p50<=20MB", "20ms or 1.5s, or 105% of the baseline"),
        ("tpot.p50<=5ms over baseline", "or 105% of the baseline"),
        ("tpot.p50<=5%", "write 105% or '5% over baseline'"),
        ("peak<=200", "800MB"),
    ],
)
def test_what_would_judge_wrongly_is_misuse(text, advice):
    with pytest.raises(MisuseError) as caught:
        parse_gate(text, METRICS)
    assert advice in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_gate_or_misuse(text):
    try:
        gate = parse_gate(text, METRICS)
    except MisuseError:
        return
    assert not gate.judge({}).is_met


@pytest.mark.parametrize(
    ("text", "needs"),
    [("ppl<=30", False), ("ppl<=2%", True), ("kl<=1", True), ("top1>0.5", True), ("peak<=1GB", False)],
)
def test_what_compares_needs_a_reference(text, needs):
    assert parse_gate(text, METRICS).needs_reference is needs


@pytest.mark.parametrize(
    ("option", "older", "now"),
    [
        ("--fail-on", "ppl>2%", "ppl<=2%"),
        ("--fail-on", "ppl>=30", "ppl<30"),
        ("--fail-on", "top1 < 99%", "top1>=99%"),
        ("--fail-on", "tpot.p50>5%", "tpot.p50<=5% over baseline"),
        ("--fail-on", "tpot.p50>20ms", "tpot.p50<=20ms"),
        ("--check", "ppl=2%", "ppl<=2%"),
        ("--check", "top1=95%", "top1>=95%"),
        ("--budget", "kl = 0.02", "kl<=0.02"),
    ],
)
def test_an_older_spelling_means_what_it_meant_and_one_note_says_so(capsys, option, older, now):
    (gate,) = from_older(option, [older], METRICS, "--require")
    assert gate == parse_gate(now, METRICS)
    assert capsys.readouterr().err == f"an older spelling: {option} {older!r} is now --require {now!r}\n"


def test_a_required_share_was_a_number_alone(capsys):
    int8 = Metric(name="int8", described="linears in INT8", unit="share", is_better_high=True)
    (gate,) = from_older("--require-int8", ["95%"], {"int8": int8}, "--require")
    assert (gate.text, gate.bound) == ("int8>=95%", 0.95)


def test_a_budget_in_the_grammar_of_today_is_no_older_spelling(capsys):
    (gate,) = from_older("--budget", ["ppl<=2%"], METRICS, "--budget")
    assert (gate.text, capsys.readouterr().err) == ("ppl<=2%", "")


@pytest.mark.parametrize(("option", "text"), [("--fail-on", "speed>3"), ("--check", "2%"), ("--fail-on", "ppl<2%")])
def test_an_older_spelling_that_means_nothing_is_misuse_naming_its_option(option, text):
    with pytest.raises(MisuseError) as caught:
        from_older(option, [text], METRICS, "--require")
    assert f"{option} {text!r}" in str(caught.value)


def test_both_spellings_are_taken_together(capsys):
    parser = argparse.ArgumentParser()
    add_gate_arguments(parser, "'ppl<=2%'", "--fail-on")
    arguments = parser.parse_args(["--require", "ppl<=2%", "--fail-on", "kl>1", "--require", "top1>=50%"])
    assert [gate.text for gate in gates_of(arguments, METRICS, "--fail-on")] == ["ppl<=2%", "top1>=50%", "kl<=1"]
    assert gates_of(parser.parse_args([]), METRICS, "--fail-on") == ()


def test_a_gate_that_is_not_met_is_named_with_its_place(capsys):
    results = [
        GateResult(expression="peak<=1MB", value=2e6, is_met=False, message="peak memory is 2.0 MB", place="build"),
        GateResult(expression="ppl<=2%", value=0.0, is_met=True, message=""),
    ]
    assert (tell_gates(results), tell_gates(results[1:])) == (1, 0)
    assert capsys.readouterr().err == "gate not met: build: peak<=1MB: peak memory is 2.0 MB\n"


ACCURACY = Metric(name="accuracy", described="the accuracy", unit="share", is_better_high=True, percent_of="reference")


@pytest.mark.parametrize(
    ("text", "values", "is_met"),
    [
        ("accuracy>=-0.5%", {"accuracy_change": -0.004}, True),
        ("accuracy>=-0.5%", {"accuracy_change": -0.006}, False),
        ("accuracy>=+1%", {"accuracy_change": 0.005}, False),
        ("accuracy>=90%", {"accuracy": 0.91, "accuracy_change": -0.5}, True),  # without a sign it bounds the share
        ("accuracy>=0.9", {"accuracy": 0.89}, False),
    ],
)
def test_a_signed_percentage_of_a_share_bounds_its_change(text, values, is_met):
    gate = parse_gate(text, {"accuracy": ACCURACY})
    assert gate.judge(values).is_met == is_met
    assert gate.needs_reference == ("+" in text or "-" in text)


@pytest.mark.parametrize(("text", "message"), [("accuracy>=-0.5", "is bounded as"), ("top1>=-1%", "Cannot read")])
def test_a_signed_bound_that_is_no_change_is_refused(text, message):
    metrics = {"accuracy": ACCURACY, "top1": Metric(name="top1", described="x", unit="share", is_better_high=True)}
    with pytest.raises(MisuseError, match=message):
        parse_gate(text, metrics)
