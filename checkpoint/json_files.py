"""JSON files of a checkpoint, which may be damaged, or hold anything."""

import json
from pathlib import Path
from typing import Any

from piston.core.errors import CheckpointError


def read_json(path: Path) -> Any:
    """What a file holds; raises CheckpointError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} cannot be read ({problem}); copy it again.") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; raises CheckpointError where it cannot be read or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy it again.")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """As `read_object`; empty without the file."""
    return read_object(path) if path.is_file() else {}


def is_token_id(value: object, vocab_size: int) -> bool:
    """Whether it is the id of one of so many tokens; a number in a text is none, nor is a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
