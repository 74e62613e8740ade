"""Toys exported once per session: bare canonical graphs of many architectures, and whole model directories of a few."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from canonical import export_toy
from checkpoints import write_checkpoint
from zoo import make

from piston.export import ExportOptions, export_model
from piston.runtime.manifest import CacheSpec


@dataclass(frozen=True)
class Toy:
    """A canonical graph on disk."""

    path: Path
    cache: CacheSpec


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """toy(model_type, **overrides) -> Toy, float32."""
    made = {}

    def export(model_type, **overrides):
        key = (model_type, *sorted(overrides.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(model_type)
            made[key] = Toy(out / "model.onnx", export_toy(make(model_type, **overrides), out))
        return made[key]

    return export


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
