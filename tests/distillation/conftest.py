"""One teacher of two layers and its text for all tests of distillation."""

from pathlib import Path

import pytest
from checkpoints import write_checkpoint

PROSE = Path(__file__).parents[2] / "data/texts/prose.txt"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    write_checkpoint(directory)
    return directory
