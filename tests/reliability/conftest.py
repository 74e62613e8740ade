"""A toy as its stages write it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made_model_dir(toys) -> Path:
    """A two-layer llama, exported."""
    return toys.model_dir()


@pytest.fixture(scope="session")
def made_bundle(toys) -> Path:
    """And built."""
    return toys.bundle(build={"max_batch": 2, "max_length": 60})


@pytest.fixture
def model_dir(made_model_dir, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made_model_dir, tmp_path / "model"))


@pytest.fixture
def bundle(made_bundle, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))
