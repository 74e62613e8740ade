from xml.etree import ElementTree as ET

import numpy as np
import pytest

from piston.core.report.axis import Axis, ticks
from piston.core.report.chart import Bar, Cell, Chart, Curve, Point, bars, curves, heat_map, scatter

CHART = Chart("c", "Title", "What it shows", "x", "y")
HOSTILE = "<script>alert('&')</script>"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 3.3), (-5, 1e6), (1e-7, 2e-7), (99.2, 100)])
def test_ticks_are_few_and_cover_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 * abs(low)
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize("is_log", [True, False])
def test_an_axis_lays_its_ends_at_its_ends_and_keeps_what_is_outside_within(is_log):
    axis = Axis(1.0, 1000.0, 60, 700, is_log=is_log)
    assert [axis.at(value) for value in (1, 1000, 0.001, 1e9)] == pytest.approx([60, 700, 60, 700])
    assert axis.at(10) == pytest.approx(60 + 640 / 3 if is_log else 60 + 640 * 9 / 999)
    assert 2 <= len(axis.ticks()) <= 12
    assert all(np.diff(axis.ticks()) > 0)


def test_a_heat_map_has_a_cell_for_each_group_and_frames_what_is_kept():
    places = [(str(layer), kind) for layer in range(3) for kind in ("up", "down")]
    cells = [Cell(*place, 10.0**index, "label", index == 5) for index, place in enumerate(places)]
    root = ET.fromstring(heat_map(CHART, cells, "in float"))  # noqa: S314
    boxes = [node for node in root.iter("rect") if node.get("class") == "cell" and node.get("height") == "14.0"]
    assert len(boxes) == 6
    strengths = [float(box.get("fill-opacity")) for box in boxes]
    assert strengths == sorted(strengths)
    assert strengths[-1] == 1
    assert len([node for node in root.iter("rect") if node.get("class") == "kept"]) == 1 + 1  # and the key


def test_dots_lie_where_their_numbers_are():
    dots = [Point(0, 0, "low <"), Point(5, 1, "middle"), Point(10, 2, "high")]
    root = ET.fromstring(scatter(CHART, dots))  # noqa: S314
    points = [(float(node.get("cx")), float(node.get("cy"))) for node in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert x0 < x2
    assert y0 > y2


def test_foreign_text_is_escaped_in_every_place():
    chart = Chart("c", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    drawn = [
        curves(chart, [Curve(HOSTILE, "own", [1, 2], [3, 4])]),
        bars(chart, [Bar(HOSTILE, "own", 1.0, 0.5, 1.5, HOSTILE)], reference=1.0),
        heat_map(chart, [Cell(HOSTILE, HOSTILE, 1.0, HOSTILE, is_framed=True)], HOSTILE),
        scatter(chart, [Point(0, 0, HOSTILE), Point(1, 1, HOSTILE)]),
    ]
    for svg in drawn:
        assert "<script" not in svg
        ET.fromstring(svg)  # noqa: S314 - ours


def test_long_words_behind_a_bar_have_room():
    text = "2.00 ms, 100% of what the machine allows"
    root = ET.fromstring(bars(CHART, [Bar("a", "own", 1.0, None, None, text)]))  # noqa: S314 - ours
    (value,) = (node for node in root.iter("text") if node.text == text)
    assert float(value.get("x")) + 6 * len(text) < 720
