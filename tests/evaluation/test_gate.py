import math

import pytest

from piston.core.errors import MisuseError
from piston.evaluation.gate import METRICS, parse_gate


@pytest.mark.parametrize(
    ("text", "quantity", "bound"),
    [
        ("ppl>2%", "ppl_change", 0.02),
        ("ppl>30", "ppl", 30),
        (" ppl > 0.5 % ", "ppl_change", 0.005),
        ("kl>0.02", "kl", 0.02),
        ("kl>2e-2", "kl", 0.02),
        ("kl>.02", "kl", 0.02),
        ("kl_p99>1.", "kl_p99", 1),
        ("top1<99%", "top1", 0.99),
        ("top1<0.99", "top1", 0.99),
        ("answers<50%", "answers", 0.5),
        ("bpb>1%", "bpb_change", 0.01),
    ],
)
def test_an_expression_names_a_quantity_and_a_bound(text, quantity, bound):
    gate = parse_gate(text)
    assert (gate.quantity, gate.bound) == (quantity, pytest.approx(bound))


@pytest.mark.parametrize(
    ("text", "value", "is_met"),
    [
        ("ppl>30", 29.9, True),
        ("ppl>30", 30, True),
        ("ppl>30", 30.1, False),
        ("ppl>=30", 30, False),
        ("top1<99%", 0.991, True),
        ("top1<99%", 0.99, True),
        ("top1<99%", 0.989, False),
        ("top1<=99%", 0.99, False),
        ("ppl>30", math.nan, False),
        ("top1<99%", math.nan, False),
        ("ppl>30", math.inf, False),
    ],
)
def test_the_condition_says_what_fails(text, value, is_met):
    gate = parse_gate(text)
    assert gate.check({gate.quantity: value}).is_met is is_met


def test_a_change_is_bounded_upwards_only():
    assert parse_gate("ppl>2%").check({"ppl_change": -0.5}).is_met


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        ("ppl>2%", 0.031, "ppl>2%: perplexity is 3.10% above the reference's"),
        ("ppl>2%", -0.01, "ppl>2%: perplexity is 1.00% below the reference's"),
        ("top1<99%", 0.5, "top1<99%: top-1 agreement is 50.00%"),
        ("kl>0.02", 0.25, "kl>0.02: mean KL divergence is 0.25"),
    ],
)
def test_the_message_is_one_line_with_the_value(text, value, message):
    gate = parse_gate(text)
    assert gate.check({gate.quantity: value}).message == message


@pytest.mark.parametrize(
    "text", ["", "ppl", "ppl>", ">2%", "ppl=2", "ppl==2", "pppl>2", "ppl>2%%", "ppl>-2%", "ppl>x", "ppl>nan", "a>1>2"]
)
def test_an_expression_that_cannot_be_read_is_misuse_naming_the_figures(text):
    with pytest.raises(MisuseError, match="Cannot read --fail-on") as caught:
        parse_gate(text)
    assert all(name in str(caught.value) for name in METRICS)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("top1>99%", "top1<99%"),
        ("ppl<2%", "ppl>2%"),
        ("kl>2%", "has no percentage"),
        ("top1<99", "at most 1"),
        ("ppl>1e999", "beyond every number"),
    ],
)
def test_an_expression_that_would_judge_wrongly_is_misuse(text, advice):
    with pytest.raises(MisuseError, match=advice):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "needs"), [("ppl>30", False), ("bpb>1", False), ("ppl>2%", True), ("kl>1", True), ("top1<0.5", True)]
)
def test_what_compares_needs_a_reference(text, needs):
    assert parse_gate(text).needs_reference is needs


def test_a_quantity_that_was_not_measured_is_misuse():
    with pytest.raises(MisuseError, match="was not measured"):
        parse_gate("kl>1").check({"ppl": 3})
