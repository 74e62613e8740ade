"""Whole model directories of a few toys, exported once per session."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint

from piston.export import ExportOptions, export_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A llama toy as `piston export` writes it."""
    return exported(tmp_path_factory.mktemp("export"), torch.float32)


@pytest.fixture(scope="session")
def bfloat16_model_dir(tmp_path_factory) -> Path:
    """The same in bfloat16."""
    return exported(tmp_path_factory.mktemp("export16"), torch.bfloat16)


def exported(directory: Path, dtype: torch.dtype) -> Path:
    write_checkpoint(directory / "checkpoint", "llama", dtype)
    export_model(directory / "checkpoint", directory / "model", ExportOptions(check_parity=False))
    return directory / "model"
