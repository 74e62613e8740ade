import xml.etree.ElementTree as ET

import numpy as np

from piston.core.report.heat import LEVELS, coloured, heat_map, heat_maps

VALUES = np.array([[0.0, 1.0, 1.0], [-1.0, 0.5, 0.0]])


def test_cells_of_one_level_in_a_row_are_one_box_and_signs_have_their_colours():
    root = ET.fromstring(heat_map(VALUES, ["a", "b"], ["x", "y", "z"], "name"))  # noqa: S314
    paths = {node.get("class"): node.get("d") for node in root.iter("path")}
    assert paths == {
        f"up l{LEVELS}": "M1 0h2v1h-2z",
        f"down l{LEVELS}": "M0 1h1v1h-1z",
        f"up l{LEVELS // 2}": "M1 1h1v1h-1z",
    }
    assert [node.text for node in root.iter("text")] == ["a", "b", "x", "y", "z"]


def test_small_maps_have_their_titles():
    root = ET.fromstring(heat_maps([("head 0", VALUES), ("head 1", VALUES)], "layer"))  # noqa: S314
    assert [node.text for node in root.iter("small")] == ["head 0", "head 1"]


def test_texts_keep_every_character_and_are_escaped():
    found = coloured("a <b> c", [(2, 5, -0.5), (6, 7, 1.0)], 1.0, 'na"me')
    root = ET.fromstring(found)  # noqa: S314
    assert "".join(root.itertext()) == "a <b> c"
    assert [(node.get("class"), node.text) for node in root.iter("span")] == [("down l6", "<b>"), ("up l12", "c")]


def test_a_map_of_zeros_has_no_cells():
    assert "<path" not in heat_map(np.zeros((2, 2)), ["a", "b"], ["a", "b"], "zeros")
