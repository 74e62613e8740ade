"""A toy llama as `piston export` writes it, in two types."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_dir(toys) -> Path:
    """In float32."""
    return toys.model_dir()


@pytest.fixture(scope="session")
def bfloat16_model_dir(toys) -> Path:
    """In bfloat16, with tied embeddings."""
    return toys.model_dir(dtype="bfloat16", tie_word_embeddings=True)
