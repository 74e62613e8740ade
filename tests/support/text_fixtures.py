"""Tiny encoder-decoders, exported and built once."""

import pytest
from encoder_decoders import write_text_checkpoint

from piston.engines import build
from piston.export import export_model


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    """A model directory of a seeded T5, and transformers' model: (directory, model)."""
    root = tmp_path_factory.mktemp("texts")
    model = write_text_checkpoint(
        root / "checkpoint", "flan-t5", num_decoder_layers=2
    )  # generate wants as many as of the encoder
    export_model(root / "checkpoint", root / "model")
    return root / "model", model


@pytest.fixture(scope="session")
def text_bundle(text_model, tmp_path_factory):
    """Its bundle for ort-cpu, with 4 slots of 64 positions."""
    out = tmp_path_factory.mktemp("texts") / "bundle"
    build(text_model[0], out, max_batch=4, max_length=64)
    return out
