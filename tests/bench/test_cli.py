import functools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from benched import opener, ticking
from toy_model import write_bundle

from piston.bench import cli, publish
from piston.bench.measure import measure
from piston.core.errors import Error

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/bench.json").read_text(encoding="utf-8"))
SMALL = ("--prompt-len", "16", "--gen-len", "8", "--repeats", "8", "--warmup", "1", "--starts", "0", "--quiet")


@pytest.fixture
def slower(tmp_path):
    """Another bundle."""
    write_bundle(tmp_path / "slower")
    return tmp_path / "slower"


@pytest.fixture
def bench(bundle, piston, monkeypatch):
    """bench(*words, name=seconds a token): `piston bench` of the bundle, on a clock of ours."""

    def run(*words, noise=0.02, small=SMALL, **speeds):
        speeds = {"bundle": 0.01, "slower": 0.011} | speeds
        scripted = functools.partial(measure, opener=opener(speeds, noise=noise), clock=ticking(0.5))
        monkeypatch.setattr(cli, "measure", scripted)
        return piston("bench", bundle, *small, *words)

    return run


def json_of(result):
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_one_bundle_is_measured_at_every_setting(bench):
    found = json_of(bench("--batch", "1,2", "--prompt-len", "8,16", "--json"))
    (system,) = found["systems"]
    settings = [(item["setting"]["batch"], item["setting"]["prompt_len"]) for item in system["settings"]]
    assert settings == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert all(len(item["runs"]) == 8 for item in system["settings"])
    assert (found["ratios"], found["gates"], found["baseline"]) == ([], [], None)


def test_neighbours_are_part_of_the_setting(bench, tmp_path):
    found = json_of(bench("--neighbours", "0,1", "--json"))
    settings = [item["setting"] for item in found["systems"][0]["settings"]]
    assert [setting["neighbours"] for setting in settings] == [0, 1]
    assert settings[0] | {"neighbours": 1} == settings[1]
    assert "8 tokens, 1 busy neighbour" in bench("--neighbours", "1").out
    (tmp_path / "base.json").write_text(json.dumps(found), encoding="utf-8")
    result = bench("--neighbours", "2", "--baseline", tmp_path / "base.json", "--fail-on", "tpot>5%")
    assert "was not measured at batch 1, prompt 16, 8 tokens, 2 busy neighbours" in result.err


def test_new_processes_are_measured(bench):
    (system,) = json_of(bench("--starts", "2", "--json"))["systems"]
    assert [start["first_token"] for start in system["starts"]] == [0.5, 0.5]
    assert system["metrics"]["peak"]["p50"]["value"] == 300_000_000


def test_a_rival_has_ratios_with_intervals(bench, slower):
    found = json_of(bench("--against", f"piston:{slower}", "--json", slower=0.02))
    (tpot,) = [ratio for ratio in found["ratios"] if ratio["metric"] == "tpot"]
    assert tpot["rival"] == "slower"
    assert tpot["ratio"]["low"] < 2 < tpot["ratio"]["high"]


def test_two_rivals_of_one_name_are_told_apart(bench, slower, bundle):
    found = json_of(bench("--against", f"piston:{slower}", "--json"))
    assert [system["name"] for system in found["systems"]] == ["bundle", "slower"]


def test_the_table_names_the_machine_the_metrics_and_the_rivals(bench, slower):
    out = bench("--against", f"piston:{slower}", "--starts", "1").out
    assert "2 cores" in out or "cores" in out
    for label in ("time to first token", "time per output token", "inter-token latency", "sampling, per token"):
        assert f"\n{label}" in out
    assert "\nslower" in out
    assert "new process to first token" in out


def test_prompts_of_a_file_are_measured(bench, tmp_path):
    (tmp_path / "prompts.txt").write_text("hello\nhello you\n", encoding="utf-8")
    found = json_of(bench("--prompts", tmp_path / "prompts.txt", "--json", small=SMALL[2:]))
    (measured,) = found["systems"][0]["settings"]
    assert len({run["prompt_len"] for run in measured["runs"]}) == 2
    assert len(measured["setting"]["prompts"]) == 64


def test_prompts_of_a_file_have_lengths_of_their_own(bench, tmp_path):
    (tmp_path / "prompts.txt").write_text("hello\n", encoding="utf-8")
    result = bench("--prompts", tmp_path / "prompts.txt")
    assert result.status == 2
    assert "leave out --prompt-len" in result.err


def test_a_slower_build_fails_the_gate_against_an_earlier_run(bench, tmp_path):
    (tmp_path / "base.json").write_text(bench("--json").out, encoding="utf-8")
    words = ("--baseline", tmp_path / "base.json", "--require", "tpot.p50<=105%")
    assert bench(*words).status == 0
    failed = bench(*words, bundle=0.011)
    assert failed.status == 1
    assert "gate not met: batch 1, prompt 16, 8 tokens: tpot.p50<=105%: " in failed.err


def test_a_slower_build_fails_the_gate_against_a_bundle_measured_in_turns(bench, slower):
    assert bench("--baseline", slower, "--require", "tpot<=105%", bundle=0.0125).status == 1
    found = bench("--baseline", slower, "--require", "tpot<=105%", "--json")
    assert found.status == 0
    assert json_of(found)["baseline"]["kind"] == "bundle"


def test_a_baseline_of_another_machine_is_told(bench, tmp_path):
    base = json.loads(bench("--json").out)
    base["machine"]["cpu"] = "Z80"
    (tmp_path / "base.json").write_text(json.dumps(base), encoding="utf-8")
    out = bench("--baseline", tmp_path / "base.json", "--require", "tpot<=105%").out
    assert "differs: cpu: Z80, here" in out
    assert "they may explain a change" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--prompt-len", "8"), "was not measured at batch 1, prompt 8"),
        (("--threads", "7"), "was measured with --threads"),
        (("--warmup", "3"), "was measured with --warmup 1, this is 3"),
    ],
)
def test_unlike_runs_are_not_compared(bench, tmp_path, words, told):
    (tmp_path / "base.json").write_text(bench("--json", "--threads", "1").out, encoding="utf-8")
    gate = ("--require", "tpot<=105%")
    result = bench("--threads", "1", "--baseline", tmp_path / "base.json", *gate, *words)
    assert result.status == 2
    assert told in result.err


@pytest.mark.parametrize(
    ("then", "gate", "told"),
    [(("--repeats", "3"), "tpot<=105%", "raise --repeats"), ((), "load<=105%", "needs new processes")],
)
def test_a_baseline_measured_too_seldom_is_refused(bench, tmp_path, then, gate, told):
    (tmp_path / "base.json").write_text(bench("--json", *then).out, encoding="utf-8")
    result = bench("--starts", "4", "--baseline", tmp_path / "base.json", "--require", gate)
    assert result.status == 2
    assert "has too few runs" in result.err
    assert told in result.err


def test_junit_counts_the_gates_and_tells_those_that_failed(bench, tmp_path, slower):
    gates = [word for gate in ("tpot<=105%", "ttft<=90s", "total<=90s") for word in ("--require", gate)]
    assert bench("--baseline", slower, *gates, "--junit", tmp_path / "junit.xml", bundle=0.02).status == 1
    (suite,) = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures["batch 1, prompt 16, 8 tokens: ttft<=90s"] is None
    assert "changed by +" in failures["batch 1, prompt 16, 8 tokens: tpot<=105%"].get("message")


def test_markdown_has_gates_tables_and_rows_of_equal_width(bench, tmp_path, slower):
    bench("--baseline", slower, "--require", "tpot<=105%", "--markdown", tmp_path / "bench.md")
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    assert all(len({line.count(" | ") for line in table}) == 1 for table in tables)
    assert "| met |" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--repeats", "0"), "--repeats is 0"),
        (("--starts", "-1"), "--starts is -1"),
        (("--threads", "0"), "--threads is 0"),
        (("--threads", "100000"), "threads is 100000"),
        (("--neighbours", "0,-1"), "--neighbours must be a list"),
        (("--alpha", "1"), "--alpha is 1.0"),
        (("--batch", "0"), "--batch is 0"),
        (("--batch", "x"), "not a list of integers"),
        (("--gen-len", "90"), "the model has 96"),
        (("--require", "tpot<=105%"), "give --baseline"),
        (("--baseline", "."), "--baseline needs a gate"),
        (("--require", "load<=5s"), "raise --starts"),
        (("--junit", "junit.xml"), "give --require"),
        (("--html", "/nowhere/page.html"), "there is no directory"),
        (("--html", "page", "--markdown", "page"), "both name page"),
        (("--against", "vllm:/tmp"), "write KIND:PATH"),
        (("--target", "tensorrt"), "tensorrt"),
    ],
)
def test_wrong_options_are_told_before_anything_is_measured(bench, words, told):
    result = bench(*words)
    assert result.status in {1, 2}
    assert told in result.err
    assert result.out == ""


def test_a_page_does_not_replace_a_file_of_the_bundle(bench, bundle):
    before = (bundle / "manifest.json").read_bytes()
    result = bench("--html", bundle / "manifest.json")
    assert (result.status, "would replace" in result.err) == (2, True)
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_page_that_cannot_be_written_costs_no_figure_that_was_measured(bench, tmp_path, monkeypatch):
    def full(path, content):
        raise Error(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(publish, "write_output", full)
    result = bench("--html", tmp_path / "page.html", "--json")
    assert (result.status, "Cannot write" in result.err) == (1, True)
    assert json_of(result)["systems"]
