"""Whether a checkpoint's weight files are complete, judged by headers and sizes. No weight is read."""

import json
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes: the bound of the safetensors format
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError)


def damage_of(path: Path) -> str | None:
    """What is wrong with a weight file, judged by its size; None if nothing is."""
    if path.suffix == ".gguf" or _begins_with(path, b"GGUF"):
        try:
            GgufHeader.read(path).check_data()
        except CheckpointError as problem:
            return str(problem)
        return None
    if path.suffix == ".safetensors":
        try:
            end = _safetensors_end(path)
        except _UNREADABLE as problem:
            return f"its header cannot be read ({problem})"
        size = path.stat().st_size
        return None if end <= size else f"it was truncated: its tensors end at byte {end:,}, and it has {size:,}"
    if path.stat().st_size == 0:
        return "it is empty"
    if _begins_with(path, b"PK") and not zipfile.is_zipfile(path):  # as torch.save writes them
        return "it was truncated: the end of its archive is missing"
    return None


def missing_shards(path: Path) -> list[str]:
    """The weight files that a directory's index, or the name of a GGUF part, lists and that are missing."""
    if path.is_file():
        match = _SHARD.fullmatch(path.name)
        count = int(match["count"]) if match else 0
        names = [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)] if match else []
        return [name for name in names if not path.with_name(name).is_file()]
    named: set[str] = set()
    for index in sorted(path.glob("*.index.json")):
        try:
            named |= {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except _UNREADABLE:
            return [f"a readable {index.name}"]
    return sorted(name for name in named if not (path / name).is_file())


def _begins_with(path: Path, tag: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(tag)) == tag


def _safetensors_end(path: Path) -> int:
    """The first byte after the last tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"it has {length} bytes")
        header: Any = json.loads(file.read(length))
    if not isinstance(header, Mapping):
        raise TypeError("it is not an object")
    ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    return 8 + int(length) + max(ends, default=0)
