"""Cases as JUnit XML, for continuous integration."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from xml.etree import ElementTree as ET

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


class Case(NamedTuple):
    """One test case: whether it passed, and its message."""

    name: str
    is_met: bool
    message: str = ""
    seconds: float = 0.0


def junit_of(suite: str, cases: Iterable[Case]) -> str:
    """The document with one suite."""
    cases = list(cases)
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(not case.is_met for case in cases)),
        "errors": "0",
        "skipped": "0",
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }
    root = ET.Element("testsuites", counts)
    parent = ET.SubElement(root, "testsuite", {"name": _clean(suite), **counts})
    for case in cases:
        attributes = {"classname": _clean(suite), "name": _clean(case.name), "time": f"{case.seconds:.3f}"}
        element = ET.SubElement(parent, "testcase", attributes)
        if not case.is_met:
            ET.SubElement(element, "failure", {"message": _clean(case.message)})
        elif case.message:
            ET.SubElement(element, "system-out").text = _clean(case.message)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub(" ", text)
