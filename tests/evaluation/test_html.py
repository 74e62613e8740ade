import dataclasses
import re

import numpy as np
import pytest
from evaluated import corpus_of, opened, other_script
from page_outline import Outline
from toy_model import VOCAB_SIZE, answering, history_script, ids_of

from piston.core.gates import parse_gate
from piston.evaluation.evaluate import EvalOptions, evaluate
from piston.evaluation.html import page_of
from piston.evaluation.metrics import METRICS, measured
from piston.evaluation.prompts import Prompt
from piston.evaluation.windows import Windowing

IDS = np.random.default_rng(3).integers(6, VOCAB_SIZE, size=90)
WINDOWING = Windowing(length=16, stride=8)
HOSTILE = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def report():
    options = EvalOptions(windowing=WINDOWING, prompts=[Prompt(HOSTILE), Prompt("b")], answer_tokens=6)
    report = evaluate(opened(other_script()), opened(history_script()), corpus_of(IDS), options)
    gates = [parse_gate(text, METRICS).judge(measured(report)) for text in ("kl<=1e-9", "ppl<=900%")]
    return dataclasses.replace(report, gates=tuple(gates))


@pytest.fixture(scope="module")
def alone():
    return evaluate(opened(history_script()), None, corpus_of(IDS), EvalOptions(windowing=WINDOWING))


def test_every_tag_is_closed(report, alone):
    Outline(page_of(report))
    Outline(page_of(alone))


def test_nothing_is_loaded_and_nothing_runs(report):
    page = page_of(report)
    assert {tag for tag, _ in Outline(page).tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    assert not any({"src", "href", "srcset", "onload", "style"} & set(attrs) for _, attrs in Outline(page).tags)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_text_of_models_and_prompts_is_escaped(report):
    page = page_of(report)
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in page


def test_every_chart_is_named_and_described_for_who_cannot_see_it(report):
    charts = re.findall(r'<svg viewBox="0 0 720.*?</svg>', page_of(report), flags=re.DOTALL)
    assert len(charts) == 3
    for chart in charts:
        (svg,) = (attrs for tag, attrs in Outline(chart).tags if tag == "svg")
        texts = dict(re.findall(r'<(?:title|desc) id="([^"]+)">([^<]+)<', chart))
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) == set(texts)
    assert page_of(report).count("The numbers as a table") == 3


def test_ids_are_unique(report):
    ids = [attrs["id"] for _, attrs in Outline(page_of(report)).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_marks_lie_within_the_chart(report):
    for y in re.findall(r'(?:c?y|y1|y2)="([-\d.]+)"', page_of(report)):
        assert 0 <= float(y) <= 260
    for x in re.findall(r'(?:c?x|x1|x2)="([-\d.]+)"', page_of(report)):
        assert 0 <= float(x) <= 720


def test_the_histogram_counts_every_token(report):
    kl = report.agreement.kl
    assert sum(kl.counts) + kl.num_zero == report.data.num_scored


def test_gates_tell_met_from_not_met_without_colour(report):
    page = page_of(report)
    assert "✗ not met: kl&lt;=1e-9: " in page
    assert "✓ met: ppl&lt;=900%: " in page


def test_the_first_difference_of_two_answers_is_marked():
    scripts = [answering((ids_of("Q"), ids_of(said))) for said in ("hello you there", "hello world")]
    options = EvalOptions(windowing=WINDOWING, prompts=[Prompt("Q")], answer_tokens=20)
    page = page_of(evaluate(opened(scripts[1]), opened(scripts[0]), corpus_of(IDS), options))
    assert "<pre>hello <mark>you</mark> there</pre>" in page
    assert "<pre>hello <mark>world</mark></pre>" in page


def test_an_answer_that_ends_first_has_its_end_marked():
    scripts = [answering((ids_of("Q"), ids_of(said))) for said in ("hello", "hello you")]
    options = EvalOptions(windowing=WINDOWING, prompts=[Prompt("Q")], answer_tokens=20)
    page = page_of(evaluate(opened(scripts[1]), opened(scripts[0]), corpus_of(IDS), options))
    assert "<pre>hello<mark>(end of the answer)</mark></pre>" in page
    assert "<pre>hello <mark>you</mark></pre>" in page


def test_identical_models_make_a_page_too():
    options = EvalOptions(windowing=WINDOWING, prompts=[Prompt("Q")], answer_tokens=4)
    page = page_of(evaluate(opened(history_script()), opened(history_script()), corpus_of(IDS), options))
    Outline(page)
    assert "89 of 89 tokens are at or below 1e-10 nats" in page
    assert "1 of 1 answers" in page


def test_thousands_of_windows_are_drawn_in_few_places(alone):
    windows = tuple(dataclasses.replace(alone.windows[0], perplexity=perplexity) for perplexity in [2.0, 8.0] * 1000)
    page = page_of(dataclasses.replace(alone, windows=windows))
    assert "averaged with neighbours" in page
    (path,) = re.findall(r'<path class="line candidate" d="([^"]*)"><title>', page)
    assert path.count("H") <= 240
