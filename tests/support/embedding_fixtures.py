"""A tiny embedding model, exported and built once."""

import pytest
from encoders import write_sentence_checkpoint

from piston.engines import build
from piston.export import export_model

PROMPTS = {"query": "query: "}


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory):
    """A model directory of a seeded BERT, and what transformers has of it: (directory, encoder)."""
    root = tmp_path_factory.mktemp("sentences")
    encoder = write_sentence_checkpoint(root / "checkpoint", prompts=PROMPTS)
    export_model(root / "checkpoint", root / "model")
    return root / "model", encoder


@pytest.fixture(scope="session")
def sentence_bundle(sentence_model, tmp_path_factory):
    """Its bundle for ort-cpu."""
    out = tmp_path_factory.mktemp("sentences") / "bundle"
    build(sentence_model[0], out)
    return out
