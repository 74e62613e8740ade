"""Sentence embeddings from a checkpoint to the command line: a seeded BERT of two layers."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from encoders import mean_of_tokens
from live_server import serving
from transformers import AutoTokenizer

from piston.calibration.calibrate import calibrate
from piston.calibration.recipe import Recipe
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError, ShortfallError
from piston.data.rows import RowOptions
from piston.engines import build
from piston.runtime import load
from piston.serving.settings import Settings

TEXTS = ["a girl is styling her hair", "men play football on the beach", "girl", "on the beach: a girl"]


def expected(directory, encoder, texts):
    """By transformers: the mean of the tokens of each text alone, brought to length 1."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = torch.stack([mean_of_tokens(encoder, tokenizer(text)["input_ids"]) for text in texts])
    return torch.nn.functional.normalize(rows).numpy()


def test_embeddings_are_those_of_transformers(sentence_model, sentence_bundle):
    directory, encoder = sentence_model
    wanted = expected(directory.parent / "checkpoint", encoder, TEXTS)
    with load(sentence_bundle) as model:
        np.testing.assert_allclose(model.embed(TEXTS), wanted, atol=2e-5)
        assert (model.target, model.max_length, model.prompts) == ("ort-cpu", 16, {"query": "query: "})


def test_eight_clients_of_a_server_get_the_vectors_of_transformers_too(sentence_model, sentence_bundle):
    directory, encoder = sentence_model
    wanted = expected(directory.parent / "checkpoint", encoder, TEXTS)
    with (
        load(sentence_bundle) as model,
        serving([("embed", model)], Settings()) as server,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(number):
            order = [(number + place) % len(TEXTS) for place in range(len(TEXTS))]
            answer = server.client.embeddings.create(model="embed", input=[TEXTS[place] for place in order])
            np.testing.assert_allclose([item.embedding for item in answer.data], wanted[order], atol=2e-5)

        list(pool.map(ask, range(16)))


def test_the_command_prints_the_vectors_as_json(piston, sentence_bundle):
    result = piston("run", sentence_bundle, "--text", TEXTS[0], "--text", TEXTS[2], "--dimensions", 8, "--json")
    assert result.status == 0
    found = json.loads(result.out)
    assert found["dimensions"] == 8
    with load(sentence_bundle) as model:
        np.testing.assert_allclose(found["embeddings"], model.embed([TEXTS[0], TEXTS[2]], dimensions=8), rtol=1e-6)


@pytest.mark.parametrize("words", [("--prompt", "hi"), ("--text", "a", "--max-tokens", "3")])
def test_options_of_another_task_are_refused_naming_that_of_the_bundle(refused, sentence_bundle, words):
    status, message = refused("run", sentence_bundle, *words)
    assert status == 2
    assert f"{sentence_bundle} is for feature-extraction" in message


def test_a_chat_with_an_embedding_model_is_refused(refused, sentence_bundle):
    assert (
        "is for feature-extraction, and a model for text-generation is needed here"
        in refused("chat", sentence_bundle)[1]
    )


def calibrated(sentence_model, out, recipe, **options):
    """Calibrate on rows of a written text."""
    data = out.with_suffix(".txt")
    lines = [f"{first} {second}: {third}" for first in TEXTS for second in TEXTS for third in TEXTS]
    data.write_text("\n".join(lines))
    return calibrate(sentence_model[0], out, recipe, [data], rows=RowOptions(num_rows=4, seq_len=12, seed=1), **options)


def test_w8a8_has_every_linear_in_int8_and_stays_near(sentence_model, sentence_bundle, tmp_path):
    result = calibrated(sentence_model, tmp_path / "w8a8", Recipe(scheme="w8a8"))
    assert len(result.quantized) == 12
    assert all(gate.is_met for gate in result.check.gates)
    manifest = build(tmp_path / "w8a8", tmp_path / "bundle", require_int8=1.0)
    assert manifest.engines[0].actual["parity"]["activations"] > 0
    with load(sentence_bundle) as exact, load(tmp_path / "bundle") as model:
        assert (exact.embed(TEXTS) * model.embed(TEXTS)).sum(axis=1).min() > 0.97
        np.testing.assert_allclose(model.embed(TEXTS)[2], model.embed([TEXTS[2]])[0], atol=1e-5)


def test_w4_by_gptq_or_awq_is_nearer_than_rounded_to_nearest(sentence_model, tmp_path):
    from piston.calibration.calibrate import CheckOptions

    def distance(scheme, rounding):
        out = tmp_path / f"{scheme}-{rounding}"
        recipe = Recipe(scheme=scheme, rounding=rounding, block=16)
        found = calibrated(sentence_model, out, recipe, checked=CheckOptions(bounds=("cosine>=0.5",)))
        assert not found.kept
        return 1 - found.check.comparison.values["cosine"]

    nearest = calibrated_to_nearest(sentence_model, tmp_path)
    assert distance("w4", "gptq") < nearest
    assert distance("w4", "awq") < nearest


def calibrated_to_nearest(sentence_model, tmp_path):
    """The distance of w4 that reads no text, checked on the same kind of text."""
    from piston.calibration.calibrate import CheckOptions

    lines = [f"{first} {second}: {third}" for first in TEXTS for second in TEXTS for third in TEXTS]
    (tmp_path / "check.txt").write_text("\n".join(lines))
    checked = CheckOptions(bounds=("cosine>=0.5",), data=tmp_path / "check.txt")
    recipe = Recipe(scheme="w4", rounding="nearest", block=16)
    found = calibrate(sentence_model[0], tmp_path / "nearest", recipe, checked=checked)
    return 1 - found.check.comparison.values["cosine"]


def test_a_bound_that_is_not_met_leaves_nothing(sentence_model, tmp_path):
    from piston.calibration.check import CheckOptions

    with pytest.raises(ShortfallError, match=r"cosine>=0\.9999999: .* cosine to the float model"):
        calibrated(
            sentence_model, tmp_path / "out", Recipe(scheme="w8a8"), checked=CheckOptions(bounds=("cosine>=0.9999999",))
        )
    assert not (tmp_path / "out").exists()


def test_what_needs_a_cache_is_refused(sentence_model, tmp_path):
    with pytest.raises(MisuseError, match="--kv int8 is for language models, and this model is for feature-extraction"):
        calibrated(sentence_model, tmp_path / "out", Recipe(scheme="w8a8", kv="int8"))


def test_the_manifest_says_what_the_bundle_is(sentence_bundle):
    manifest = Manifest.read(sentence_bundle)
    assert (manifest.task, list(manifest.graphs)) == ("feature-extraction", ["encoder"])
    assert [tensor.role for tensor in manifest.graphs["encoder"].inputs] == ["tokens", "lengths", "token_types"]
    assert manifest.settings["pooling"] == ["mean"]
