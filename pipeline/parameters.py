"""How many parameters a checkpoint has, from the headers of its files; no weight is read."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from piston.core.bundle.gguf_header import GgufHeader

MAX_HEADER = 100_000_000  # bytes: the bound of the safetensors format
_EMBEDDINGS = ("embed_tokens", "token_embd", "wte.", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts; `head` is 0 where it is tied to the embedding."""

    total: int
    embedding: int
    head: int


def count_parameters(path: Path) -> Parameters | None:
    """Of a .gguf file, or of the safetensors of a directory; None for what has no header that can be read."""
    try:
        if path.is_file():
            shapes = {name: tensor.shape for name, tensor in GgufHeader.read(path).tensors.items()}
        else:
            shapes = dict(pair for file in sorted(path.glob("*.safetensors")) for pair in _safetensors(file))
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError, OverflowError):
        return None
    if not shapes:
        return None
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    embedding = sum(size for name, size in sizes.items() if any(part in name for part in _EMBEDDINGS))
    head = sum(size for name, size in sizes.items() if name == "output.weight" or any(part in name for part in _HEADS))
    return Parameters(sum(sizes.values()), embedding, head)


def _safetensors(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", _read(file, 8))
        header: Any = json.loads(_read(file, length))
    if not isinstance(header, Mapping):
        raise TypeError("the header is no object")
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tuple(_natural(size) for size in tensor["shape"])


def _read(file: BinaryIO, count: int) -> bytes:
    if count > MAX_HEADER:
        raise ValueError(f"a header of {count} bytes")
    data = file.read(count)
    if len(data) != count:
        raise ValueError("the file ends within its header")
    return data


def _natural(size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"a size of {size!r}")
    return size
