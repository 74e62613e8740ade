"""`piston bench` on real bundles of encoder-decoders: in processes of their own, through the benchmark's protocol."""

import json
from pathlib import Path

import jsonschema
import pytest
from page_outline import Outline

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/bench.json").read_text(encoding="utf-8"))
QUICK = ("--repeats", "2", "--warmup", "0", "--quiet", "--json")


@pytest.fixture
def bench(piston, tmp_path):
    """bench(bundle, *words) -> the report of a run that met its gates; its page is written and well-formed."""

    def run(bundle, *words):
        result = piston("bench", bundle, *QUICK, "--html", tmp_path / "page.html", *words)
        assert result.status == 0, result.err
        Outline((tmp_path / "page.html").read_text(encoding="utf-8"))
        found = json.loads(result.out)
        jsonschema.validate(found, SCHEMA)
        return found

    return run


def medians(measured):
    return {name: quantiles["p50"]["value"] for name, quantiles in measured["metrics"].items()}


def test_a_translator_is_measured_greedily_and_with_beams(bench, text_bundle, tmp_path):
    words = ("--prompt-len", "9", "--gen-len", "5", "--batch", "2", "--num-beams", "1,2", "--starts", "1")
    gates = ("--require", "encode<=60s", "--require", "decode.p50>=0.001tokens/s")
    found = bench(text_bundle, *words, *gates)
    greedy, search = found["systems"][0]["settings"]
    assert (greedy["setting"]["num_beams"], search["setting"]["num_beams"]) == (1, 2)
    assert set(medians(greedy)) == {"ttft", "tpot", "itl", "total", "encode", "decode", "tokenize", "sample"}
    assert set(medians(search)) == set(medians(greedy)) - {"sample"}
    for measured in (greedy, search):
        assert 0 < medians(measured)["encode"] < medians(measured)["ttft"]
        assert all(len(run["times"]) == 5 for run in measured["runs"])
    assert len(found["gates"]) == 4  # two at each setting
    assert found["systems"][0]["metrics"]["first_token"]["p50"]["value"] > 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "batch 2, 2 beams, prompt 9, 5 tokens" in page


def test_speech_is_measured_on_made_sound_by_the_second(bench, toys, speech_model, tmp_path):
    bundle = toys.built(speech_model[0], max_batch=2)
    words = ("--audio-len", "2.5", "--gen-len", "6", "--starts", "0", "--require", "rtf<=100")
    (measured,) = bench(bundle, *words)["systems"][0]["settings"]
    assert (measured["setting"]["audio"], measured["setting"]["gen_len"]) == (2.5, 6)
    values = medians(measured)
    assert set(values) == {"rtf", "first_segment", "total", "encode", "decode"}
    for run in measured["runs"]:
        assert (len(run["times"]), run["parts"]["audio"], run["parts"]["tokens"]) == (3, 2.5, 18)
    assert values["first_segment"] < values["total"]
    assert "real-time factor" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_speech_of_files_is_compared_with_another_bundle_in_turns(bench, toys, speech_model, sounds):
    bundle, other = (toys.built(speech_model[0], max_batch=size) for size in (2, 1))
    words = ("--prompts", sounds, "--starts", "0", "--against", f"piston:{other}")
    found = bench(bundle, *words)
    (measured,) = found["systems"][0]["settings"]
    assert (measured["setting"]["gen_len"], len(measured["setting"]["prompts"])) == (0, 64)
    assert [run["parts"]["audio"] for run in measured["runs"]] == [0.5, 0.52]  # the first two of the list
    assert "rtf" in {ratio["metric"] for ratio in found["ratios"]}
