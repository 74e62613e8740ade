"""`piston bench --serve`, against the benchmark's own echo in place of every server."""

import functools
import json
from pathlib import Path

import jsonschema
import pytest
from loaded import echoing, opener_of

from piston.bench.load import cli
from piston.bench.load.measure import measure_loads

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/schemas/bench.json").read_text(encoding="utf-8"))
SMALL = ("--prompt-len", "16", "--gen-len", "4", "--requests", "6", "--repeats", "2", "--warmup", "0", "--quiet")


@pytest.fixture(scope="module")
def echo():
    with echoing() as url:
        yield url


@pytest.fixture
def opened(echo, monkeypatch):
    """The systems that were started, with their options; each is the echo."""
    log = []
    monkeypatch.setattr(cli, "measure_loads", functools.partial(measure_loads, opener=opener_of(echo, log)))
    return log


@pytest.fixture
def bench(bundle, piston, opened):
    return lambda *words, serve=bundle: piston("bench", "--serve", serve, *SMALL, *words)


def json_of(result):
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_every_load_is_measured_with_intervals_and_the_clients_own_limit(bench, opened):
    found = json_of(bench("--concurrency", "1,2", "--rate", "100", "--shared-prefix", "0,8", "--json"))
    loads = found["systems"][0]["loads"]
    kinds = [(item["setting"]["concurrency"], item["setting"]["rate"]) for item in loads]
    assert kinds == [(1, None)] * 2 + [(2, None)] * 2 + [(None, 100.0)] * 2
    assert [item["setting"]["shared_prefix"] for item in loads] == [0, 8] * 3
    for item in loads:
        assert set(item["metrics"]) >= {"ttft", "itl", "tpot", "e2el", "throughput", "requests", "goodput"}
        assert item["metrics"]["ttft"]["p95"]["low"] <= item["metrics"]["ttft"]["p95"]["value"]
        assert item["client_limit"] > 0
        assert len(item["runs"]) == 2
    assert [name for name, _ in opened] == ["bundle", "echo"]
    assert opened[0][1]["max_batch"] == 8  # an open loop has no rows of its own
    assert opened[0][1]["max_length"] == 20


def test_a_rival_takes_turns_and_has_ratios(bench, echo):
    found = json_of(bench("--against", f"url:{echo}", "--concurrency", "2", "--json"))
    assert [system["kind"] for system in found["systems"]] == ["piston", "url"]
    assert {ratio["metric"] for ratio in found["ratios"]} == {"ttft", "tpot", "e2el", "throughput", "goodput"}
    own, rival = ([run["sent"] for run in system["loads"][0]["runs"]] for system in found["systems"])
    assert [len(sent) for sent in own] == [len(sent) for sent in rival]


def test_a_server_that_runs_is_measured_by_its_url(bench, echo):
    result = bench("--concurrency", "2", serve=echo)
    assert result.status == 0
    assert "2 at a time, prompt 16, 4 tokens" in result.out
    assert "\nanswered within the objective" in result.out
    assert "tokens/s from an echo" in result.out


def test_an_objective_decides_what_is_goodput(bench):
    words = ("--concurrency", "2", "--json", "--slo")
    assert json_of(bench(*words, "ttft<60s"))["systems"][0]["loads"][0]["metrics"]["attainment"]["p50"]["value"] == 1
    assert json_of(bench(*words, "ttft<1us"))["systems"][0]["loads"][0]["metrics"]["goodput"]["p50"]["value"] == 0


def test_gates_bound_the_figures_of_a_load(bench):
    assert bench("--concurrency", "2", "--require", "ttft.p95<60s", "--require", "throughput>=1tokens/s").status == 0
    result = bench("--concurrency", "2", "--require", "goodput>=1e9requests/s")
    assert result.status == 1
    assert "gate not met: 2 at a time, prompt 16, 4 tokens: goodput>=1e9requests/s: " in result.err


def test_an_earlier_run_is_a_baseline(bench, tmp_path):
    words = ("--concurrency", "2", "--repeats", "4")
    (tmp_path / "base.json").write_text(bench(*words, "--json").out, encoding="utf-8")
    gate = ("--baseline", tmp_path / "base.json", "--require", "e2el<=100000%")
    assert bench(*words, *gate).status == 0
    result = bench("--concurrency", "3", "--repeats", "4", *gate)
    assert (result.status, "was not measured at 3 at a time" in result.err) == (2, True)


def test_the_page_has_a_plot_for_each_figure_against_the_concurrency(bench, tmp_path):
    assert bench("--concurrency", "1,2", "--html", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for heading in ("Generated: prompt 16", "Time to first token: prompt 16", "Inter-token latency: prompt 16"):
        assert heading in page
    assert page.count("<svg") >= 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--concurrency", "0"), "--concurrency '0'"),
        (("--rate", "0"), "--rate '0'"),
        (("--batch", "4"), "--batch is not for servers"),
        (("--starts", "1"), "--starts is not for servers"),
        (("--rate", "nan"), "--rate 'nan'"),
        (("--requests", "0"), "--requests is 0"),
        (("--repeats", "0"), "--repeats is 0"),
        (("--prompt-len", "93"), "the model has 96"),
        (("--gen-len", "5-3"), "--gen-len '5-3'"),
        (("--shared-prefix", "16"), "leaves nothing of a prompt of 16"),
        (("--slo", "x<1s"), "Cannot read --slo"),
        (("--require", "decode>=5tokens/s"), "Cannot read --require"),
        (("--require", "ttft<=105%"), "give --baseline"),
        (("--require", "efficiency>=90%"), "needs the engine without HTTP; add --engine"),
        (("--profile",), "--profile is not for servers"),
        (("--gen-len", "1", "--require", "tpot<=1s"), "'tpot<=1s' needs a second token; raise --gen-len"),
        (("--gen-len", "1", "--require", "stall<=5"), "'stall<=5' needs a second token; raise --gen-len"),
        (("--engine", "--rate", "1"), "--engine needs a closed loop"),
        (("--against", "genai:/tmp"), "KIND is piston, openvino, llama.cpp, url"),
        (("--alpha", "2"), "--alpha is 2.0"),
    ],
)
def test_wrong_options_are_told_before_anything_is_started(bench, opened, words, told):
    result = bench(*words)
    assert (result.status, result.out, opened) == (2, "", [])
    assert told in result.err


@pytest.mark.parametrize("word", ["--rate=1", "--slo=ttft<1s", "--engine", "--long-prompt=5"])
def test_options_of_servers_are_refused_without_one(piston, bundle, word):
    result = piston("bench", bundle, word)
    assert (result.status, "give --serve" in result.err) == (2, True)


def test_a_bundle_besides_the_server_is_refused(bench, bundle, piston):
    assert "takes the place of BUNDLE" in bench(bundle).err
    assert "Name a bundle or recipes" in piston("bench").err
