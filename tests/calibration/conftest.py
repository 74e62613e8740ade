"""A toy llama as `piston export` writes it, once per session, in two types."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint

from piston.export import ExportOptions, export_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """In float32."""
    return exported(tmp_path_factory.mktemp("export"), torch.float32)


@pytest.fixture(scope="session")
def bfloat16_model_dir(tmp_path_factory) -> Path:
    """In bfloat16, with tied embeddings."""
    return exported(tmp_path_factory.mktemp("export16"), torch.bfloat16, tie_word_embeddings=True)


def exported(directory: Path, dtype: torch.dtype, **overrides: object) -> Path:
    write_checkpoint(directory / "checkpoint", "llama", dtype, **overrides)
    export_model(directory / "checkpoint", directory / "model", ExportOptions(check_parity=False))
    return directory / "model"
