import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from piston.core.gates import GateResult
from piston.pipeline.page import page_of
from piston.pipeline.render import FILES, junit_of, lines_of, markdown_of, write_reports
from piston.pipeline.report import EngineReport, LockReport, Report, StageReport

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/make.json").read_text(encoding="utf-8"))
HOSTILE = 'x<script>alert("1")</script>|\x00'


def stage(name, *, is_cached=False, seconds=2.0):
    return StageReport(name=name, key="k", is_cached=is_cached, seconds=seconds, peak_bytes=10**8, num_bytes=10**6)


def gate(expression, *, is_met=True, message="is 1"):
    return GateResult(expression=expression, value=1.0, is_met=is_met, message=message)


REPORT = Report(
    recipe="recipe.toml",
    recipe_sha256="0" * 64,
    checkpoint="model.gguf",
    checkpoint_sha256="1" * 64,
    model="toy",
    scheme="w8a8",
    bundle="bundles/toy",
    is_published=True,
    stages=(stage("export", is_cached=True), stage("build", seconds=3.0)),
    engines=(
        EngineReport(
            target="ort-cpu", dtype="float32", cache="float32", linears={"int8": 0.95, "float": 0.05}, kept=("a.b",)
        ),
    ),
    values={"bundle.size": 2e6, "verify": 1.0, "eval.ppl_change": 0.01},
    mismatches=(),
    gates=(gate("verify"), gate("int8 >= 95%")),
    machine={"cpu": "x"},
    tools={"numpy": "2"},
    piston="0.1",
)
FAILED = dataclasses.replace(
    REPORT,
    model=HOSTILE,
    is_published=False,
    gates=(gate("verify"), gate("int8 >= 95%", is_met=False, message=HOSTILE)),
    mismatches=(HOSTILE,),
    lock=LockReport(path="piston.lock", equality="none", changed=(HOSTILE,)),
)


@pytest.mark.parametrize("report", [REPORT, FAILED])
def test_the_json_is_of_the_published_schema(report):
    jsonschema.validate(json.loads(json.dumps(report.to_json())), SCHEMA)


def test_a_run_is_met_if_its_gates_and_its_lock_are():
    assert REPORT.is_met
    assert not FAILED.is_met
    assert not dataclasses.replace(FAILED, gates=()).is_met


def test_junit_counts_gates_and_stages():
    suites = ET.fromstring(junit_of(REPORT))  # noqa: S314 - ours
    assert (suites.get("tests"), suites.get("failures")) == ("4", "0")
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    assert cases["stage export"].get("time") == "0.000"
    assert cases["stage build"].get("time") == "3.000"


def test_junit_says_what_failed_in_what_xml_can_hold():
    suites = ET.fromstring(junit_of(FAILED))  # noqa: S314 - ours
    failures = [case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None]
    assert failures == ["gate int8 >= 95%", "lock"]
    assert suites.get("failures") == "2"


def test_markdown_is_tables_of_gates_and_stages():
    text = "\n".join(markdown_of(REPORT))
    assert "| <code>int8 &gt;= 95%</code> | ✅ | is 1 |" in text
    assert "| export | cached (2.0 s) |" in text
    assert all(line.count("|") in {0, 3, 4, 5} for line in text.split("\n"))


def test_people_are_told_the_same():
    text = "\n".join(lines_of(FAILED))
    assert "gate       NOT MET int8 >= 95%" in text
    assert f"verify     {HOSTILE}" in text
    assert "bundles/toy: NOT published, w8a8, 2.0 MB" in text


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("report", [REPORT, FAILED])
def test_the_page_is_whole_loads_nothing_and_runs_nothing(report):
    page = Page()
    page.feed(page_of(report))
    assert (page.open, page.loads) == ([], [])
    assert "script" not in page.tags
    text = " ".join(page.text)
    assert report.model in text or report is FAILED
    assert "95.0% INT8, 5.0% float" in text
    assert "In float, ort-cpu: a.b." in "".join(page.text)


def test_all_four_forms_are_written(tmp_path):
    write_reports(tmp_path / "report", REPORT)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(FILES)
    assert json.loads((tmp_path / "report/report.json").read_text())["is_met"] is True
