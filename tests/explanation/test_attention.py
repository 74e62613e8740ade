"""Attention of engines against transformers' own (eager, output_attentions=True) on seeded models."""

import numpy as np
import pytest
import torch
from checkpoints import VOCAB_SIZE
from encoders import make_encoder, write_sentence_checkpoint
from zoo import make

from piston.core.errors import MisuseError
from piston.explanation import attention
from piston.explanation.attention import (
    decoder_attention,
    encoder_attention,
    encoder_decoder_attention,
    engine_of,
)
from piston.runtime.bundle import Bundle
from piston.runtime.ragged import padded

BOUND = 1e-4
IDS = [2, 7, 9, 5, 11, 3]


def opened(directory):
    bundle = Bundle.open(directory)
    return bundle, engine_of(bundle, None, with_attention=True)


def same(maps, expected, kind):
    """Maps of a kind next to what transformers gives, one [1, heads, queries, keys] a layer."""
    found = [each for each in maps if each.kind == kind]
    assert [each.layer for each in found] == list(range(len(expected)))
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(each.weights, wanted[0].numpy(), atol=BOUND)
        np.testing.assert_allclose(each.weights.sum(axis=-1), 1, atol=1e-5)


def eager(model, **inputs):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**inputs, output_attentions=True)


@pytest.mark.parametrize(
    "model_type", ["deberta-v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("modernbert", "mpnet"))]
)
def test_encoders_attend_as_transformers_does(model_type, toys):
    bundle = toys.built(toys.exported(write_sentence_checkpoint, model_type))
    found = encoder_attention(*opened(bundle), padded([IDS]), list("abcdef"), 1)
    expected = eager(make_encoder(model_type), input_ids=torch.tensor([IDS])).attentions
    same(found.maps, expected, "encoder")
    assert found.difference < 1e-5


def test_an_encoder_of_standard_attention_attends_as_transformers_does(encoder_toys):
    found = encoder_attention(*opened(encoder_toys.bundle("single")), padded([IDS], [[0] * 6]), list("abcdef"), 1)
    expected = eager(encoder_toys.reference("single"), input_ids=torch.tensor([IDS])).attentions
    same(found.maps, expected, "encoder")
    assert found.difference < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_language_models_attend_as_transformers_does(model_type, toys):
    bundle = toys.bundle(model_type=model_type)
    found = decoder_attention(*opened(bundle), IDS, list("abcdef"), 1)
    expected = eager(make(model_type, vocab_size=VOCAB_SIZE), input_ids=torch.tensor([IDS])).attentions
    same(found.maps, expected, "decoder")
    assert found.difference < 1e-5


def test_encoder_decoders_attend_to_themselves_and_to_the_source(text_bundle, text_model):
    _, model = text_model
    source, answer = [3, 4, 5, 6, 1], [0, 8, 9, 10]
    found = encoder_decoder_attention(*opened(text_bundle), (source, list("abcde")), (answer, list("wxyz")), 1)
    expected = eager(model, input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer]))
    same(found.maps, expected.encoder_attentions, "encoder")
    same(found.maps, expected.decoder_attentions, "decoder")
    same(found.maps, expected.cross_attentions, "cross")
    assert found.difference < 1e-5


def test_an_int8_language_model_gives_the_same_logits_with_its_attention(toys):
    bundle = toys.bundle(model_type="llama", scheme="w8a8")
    found = decoder_attention(*opened(bundle), IDS, list("abcdef"), 1)
    assert {each.weights.shape[1:] for each in found.maps} == {(6, 6)}
    assert found.difference < 1e-5


def test_a_bundle_without_an_engine_that_keeps_attention_says_what_does(monkeypatch):
    class Kernels:
        target = "ort-cpu:avx512"

    monkeypatch.setattr(attention, "candidates", lambda _bundle, _target: [Kernels()])
    with pytest.raises(
        MisuseError, match="avx512 gives no attention weights; build the bundle with --target ort-cpu too"
    ):
        engine_of(None, None, with_attention=True)
    assert engine_of(None, None, with_attention=False).target == "ort-cpu:avx512"
