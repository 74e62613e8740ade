from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from piston.core.report.junit import Case, junit_of


def test_cases_are_counted_and_timed_and_failures_say_why():
    cases = [
        Case("a", is_met=True, seconds=1.5),
        Case("b", is_met=False, message="too <slow>"),
        Case("c", True, "fine"),
    ]
    root = ET.fromstring(junit_of("piston make", cases))  # noqa: S314 - ours
    (suite,) = root
    for element in (root, suite):
        assert [element.get(name) for name in ("tests", "failures", "errors", "time")] == ["3", "1", "0", "1.500"]
    first, second, third = suite
    assert (first.get("name"), first.get("time"), list(first)) == ("a", "1.500", [])
    assert second.find("failure").get("message") == "too <slow>"
    assert third.find("system-out").text == "fine"


@given(st.text(), st.text(alphabet=st.characters()), st.booleans())
def test_any_text_makes_a_document_that_can_be_read_back(name, message, is_met):
    document = junit_of(name, [Case(name, is_met, message)])
    ET.fromstring(document.encode())  # noqa: S314 - ours
