"""A tiny embedding model, exported and built once."""

import pytest

PROMPTS = {"query": "query: "}


@pytest.fixture(scope="session")
def sentence_model(toys):
    """A model directory of a seeded BERT, and what transformers has of it: (directory, encoder)."""
    from encoders import make_encoder, write_sentence_checkpoint

    return toys.exported(write_sentence_checkpoint, prompts=PROMPTS), make_encoder("bert")


@pytest.fixture(scope="session")
def sentence_bundle(toys, sentence_model):
    """Its bundle for ort-cpu."""
    return toys.built(sentence_model[0])
