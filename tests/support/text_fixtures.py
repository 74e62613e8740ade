"""A tiny encoder-decoder, exported and built once."""

import pytest


@pytest.fixture(scope="session")
def text_model(toys):
    """A model directory of a seeded T5, and transformers' model: (directory, model)."""
    from encoder_decoders import make_encoder_decoder, write_text_checkpoint

    return toys.exported(write_text_checkpoint, "flan-t5"), make_encoder_decoder("flan-t5")


@pytest.fixture(scope="session")
def text_bundle(toys, text_model):
    """Its bundle for ort-cpu, with 4 slots of 64 positions."""
    return toys.built(text_model[0], max_batch=4, max_length=64)
