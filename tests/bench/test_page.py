import dataclasses
import re

import pytest
from benched import OPTIONS, contender, opener, ticking
from page_outline import Outline

from piston.bench.baseline import Reference
from piston.bench.figures import style_of
from piston.bench.fingerprint import take_fingerprint
from piston.bench.gate import FIGURES, judge
from piston.bench.limits import Limits
from piston.bench.markdown import markdown_of
from piston.bench.measure import measure
from piston.bench.page import page_of
from piston.bench.profile import Operator, Phase, Profile
from piston.bench.ratios import ratios_of
from piston.bench.report import Baseline, Report
from piston.bench.workload import Setting, Work
from piston.core.console import Progress
from piston.core.gates import parse_gate

HOSTILE = "<script>alert('&')</script>"
LIMITS = Limits(read_bytes_per_s=3e10, float_ops_per_s=2e11, int8_ops_per_s=2e12, how="by hand")
OPERATOR = Operator(op="MatMul", calls=2, seconds=0.002, num_bytes=2e6, num_ops=4e6, limit=0.0001)
PROFILE = Profile(
    limits=LIMITS,
    phases=tuple(
        Phase(name=name, num_tokens=4, seconds=0.003, operators=(OPERATOR, dataclasses.replace(OPERATOR, op=HOSTILE)))
        for name in ("prefill", "decode")
    ),
)


@pytest.fixture(scope="module")
def report():
    options = dataclasses.replace(OPTIONS, repeats=4, starts=2)
    works = [Work(Setting(batch, length, 6), 500) for batch in (1, 4) for length in (8, 32)]
    names = ("own", HOSTILE, "third", "fourth", "fifth", "sixth", "seventh")
    speeds = {name: 0.01 * (index + 1) for index, name in enumerate(names)}
    systems = measure(
        [contender(name) for name in names], works, options, Progress(quiet=True), opener(speeds), ticking()
    )
    report = Report(
        machine=take_fingerprint(2),
        options=options,
        systems=tuple(systems),
        ratios=ratios_of(systems),
        baseline=Baseline(path=HOSTILE, kind="file", notes=(HOSTILE,)),
        profile=PROFILE,
        piston="1",
        date="today",
    )
    gates = [parse_gate(text, FIGURES) for text in ("tpot<=1ms", "ttft<=9s", "tpot<=105%")]
    return dataclasses.replace(report, gates=judge(gates, report, Reference(path="", earlier=report), 0.05))


@pytest.fixture(scope="module")
def page(report):
    return page_of(report)


def test_every_tag_is_closed(page):
    Outline(page)


def test_nothing_is_loaded_and_nothing_runs(page):
    tags = Outline(page).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    assert not any({"src", "href", "srcset", "onload", "style"} & set(attrs) for _, attrs in tags)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_foreign_names_are_escaped(report, page):
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in markdown_of(report)


def test_every_plot_is_named_and_described_for_who_cannot_see_it(page):
    plots = re.findall(r'<svg viewBox="0 0 720.*?</svg>', page, flags=re.DOTALL)
    assert len(plots) >= 4 + 4 + 1 + 3
    for plot in plots:
        (svg,) = (attrs for tag, attrs in Outline(plot).tags if tag == "svg")
        texts = dict(re.findall(r'<(?:title|desc) id="([^"]+)">([^<]+)<', plot))
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) == set(texts)


def test_ids_are_unique(page):
    ids = [attrs["id"] for _, attrs in Outline(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_marks_lie_within_the_plot(page):
    for plot in re.findall(r'<svg viewBox="0 0 720.*?</svg>', page, flags=re.DOTALL):
        height = float(re.search(r'viewBox="0 0 720 ([\d.]+)"', plot)[1])
        for y in re.findall(r'\b(?:cy|y|y1|y2)="([-\d.]+)"', plot):
            assert 0 <= float(y) <= height
        for x in re.findall(r'\b(?:cx|x|x1|x2)="([-\d.]+)"', plot):
            assert 0 <= float(x) <= 720
        for path in re.findall(r'<path class="line[^"]*" d="([^"]*)"', plot):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
            assert min(numbers) >= 0
            assert max(numbers) <= 720


def test_gates_tell_met_from_not_met_without_colour(page):
    assert "✗ not met: batch 1, prompt 8, 6 tokens: tpot&lt;=1ms" in page
    assert "✓ met: batch 1, prompt 8, 6 tokens: ttft&lt;=9s" in page
    assert "false alarms: " in page


def test_fourteen_systems_have_lines_of_their_own(page):
    looks = [re.search(rf"\.line\.{style_of(index)}{{([^}}]*)}}", page).group(1) for index in range(14)]
    assert len(set(looks)) == len(looks)
