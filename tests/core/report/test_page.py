import re

import pytest
from markupsafe import Markup
from page_outline import Outline

from piston.core.gates import GateResult
from piston.core.report import code
from piston.core.report.chart import Chart, Point, scatter
from piston.core.report.page import (
    Tile,
    details,
    figure,
    gates,
    heading,
    legend,
    page,
    paragraph,
    stack,
    swatches,
    table,
)

HOSTILE = "<script>alert('&')</script>"
GATES = [
    GateResult(expression=HOSTILE, value=1.0, is_met=False, message=HOSTILE, place=HOSTILE),
    GateResult(expression="ppl<=2%", value=0.0, is_met=True, message="it is", p_value=0.5, false_alarm=0.0125),
]


@pytest.fixture(scope="module")
def whole():
    svg = scatter(Chart("c", HOSTILE, HOSTILE, HOSTILE, HOSTILE), [Point(0, 0, HOSTILE), Point(1, 1, "b")])
    parts = [
        *gates(GATES),
        heading(HOSTILE),
        paragraph(HOSTILE),
        paragraph(HOSTILE, "soft"),
        table(
            [HOSTILE, "", "n"], [(HOSTILE, HOSTILE, "1"), (code(HOSTILE), stack([("own", 0.25)]), "2")], numbers=(2,)
        ),
        figure(HOSTILE, svg, legend([(HOSTILE, "own")]), details([HOSTILE], [(HOSTILE,)])),
        swatches([(HOSTILE, "own")]),
    ]
    return page(HOSTILE, [Tile(HOSTILE, HOSTILE, HOSTILE)], parts, HOSTILE, [paragraph(HOSTILE)])


def test_every_tag_is_closed_nothing_is_loaded_and_nothing_runs(whole):
    tags = Outline(whole).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    assert not re.search(r"url\(|@import|https?:|src=|onload", whole)
    assert "default-src 'none'" in whole


def test_foreign_text_is_escaped_in_every_part(whole):
    assert "<script" not in whole
    assert whole.count("&lt;script&gt;") >= 20


def test_headline_figures_stand_before_every_part(whole):
    assert whole.index('class="tiles"') < whole.index("<h2>")


def test_both_themes_define_every_colour(whole):
    light, dark = re.findall(r":root\{(.*?)\}", whole, flags=re.DOTALL)
    names = [set(re.findall(r"--\w+(?=:)", theme)) for theme in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--\w+)\)", whole)) <= names[0]


def test_gates_tell_met_from_not_met_without_colour():
    (part,) = gates(GATES)
    assert "✗ not met: &lt;script" in part
    assert "✓ met: ppl&lt;=2%: it is (false alarms: 1.25% of equal runs)" in part
    assert gates([]) == []


def test_a_table_has_heads_of_rows_and_numbers_at_the_right():
    lines = table(["", "name", "size"], [("a", "b", "1")], numbers=(2,))
    assert '<td></td><th scope="col">name</th>' in lines.replace("\n", "")
    assert '<th scope="row">a</th><td>b</td><td class="number">1</td>' in lines


def test_a_stack_has_parts_as_wide_as_their_shares():
    widths = re.findall(r"width:([\d.]+)%", stack([("own", 0.95), ("c7", 0.05)]))
    assert [float(width) for width in widths] == [95, 5]


def test_parts_are_markup_so_that_they_can_stand_in_one_another():
    assert all(isinstance(part, Markup) for part in (heading("a"), table(["a"], [("b",)]), legend([("a", "own")])))
