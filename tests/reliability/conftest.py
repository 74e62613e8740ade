"""A toy as its stages write it, made once."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made_model_dir(tmp_path_factory) -> Path:
    """A two-layer llama, exported."""
    from checkpoints import write_checkpoint

    from piston.export import ExportOptions, export_model

    directory = tmp_path_factory.mktemp("reliability")
    write_checkpoint(directory / "checkpoint")
    export_model(directory / "checkpoint", directory / "model", ExportOptions(check_parity=False))
    return directory / "model"


@pytest.fixture(scope="session")
def made_bundle(made_model_dir) -> Path:
    """And built."""
    from piston.engines import build

    build(made_model_dir, made_model_dir.parent / "bundle", max_batch=2, max_length=60)
    return made_model_dir.parent / "bundle"


@pytest.fixture
def model_dir(made_model_dir, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made_model_dir, tmp_path / "model"))


@pytest.fixture
def bundle(made_bundle, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))
