import json
from pathlib import Path

import jsonschema
import pytest

from piston.bench.encoders import LONG, NUM_TEXTS, SHORT, made_texts

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/bench-tasks.json").read_text(encoding="utf-8"))


def test_made_texts_are_of_mixed_lengths_and_always_the_same():
    sizes = [len(text.split()) for text in made_texts()]
    assert (len(sizes), min(sizes) >= SHORT, max(sizes) <= LONG) == (NUM_TEXTS, True, True)
    assert len(set(sizes)) > 50
    assert made_texts() == made_texts()


def test_an_encoder_bundle_is_measured_and_judged(piston, sentence_bundle):
    words = ("bench", sentence_bundle, "--repeats", "2", "--warmup", "0", "--quiet")
    result = piston(*words, "--json", "--require", "latency<=60s", "--require", "texts_per_second>=0.001")
    assert result.status == 0
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    values = found["values"]
    assert values["texts_per_second"] == pytest.approx(values["tokens_per_second"] / found["num_tokens"] * NUM_TEXTS)
    assert 0 < values["latency"] <= values["latency_p90"]
    assert values["peak"] > 1e7
    missed = piston(*words, "--require", "latency<=1us")
    assert (missed.status, "gate not met: latency<=1us" in missed.err) == (1, True)
    assert "texts a second" in missed.out


def test_options_of_language_models_are_refused_by_name(refused, sentence_bundle):
    status, message = refused("bench", sentence_bundle, "--gen-len", "8")
    assert (status, message) == (
        2,
        "--gen-len is for language models, and this model is for feature-extraction; leave it out.",
    )
