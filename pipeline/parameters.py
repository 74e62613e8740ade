"""How many parameters a checkpoint has, from the headers of its files; no weight is read."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEADER = 100_000_000  # bytes: the bound of the safetensors format
MAX_ITEMS = 1_000_000  # tensors or keys of a GGUF header, and elements of an array in it
MAX_DIMS = 8
_EMBEDDINGS = ("embed_tokens", "token_embd", "wte.", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF value type: bytes
_STRING, _ARRAY = 8, 9


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
            shapes = dict(_gguf(path))
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


def _gguf(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Versions 2 and 3 of the format, little-endian."""
    with path.open("rb") as file:
        magic, version, num_tensors, num_keys = struct.unpack("<4sIQQ", _read(file, 24))
        if magic != b"GGUF" or version not in {2, 3} or max(num_tensors, num_keys) > MAX_ITEMS:
            raise ValueError("no GGUF header that is known")
        for _ in range(num_keys):
            _string(file)
            _skip(file, *struct.unpack("<I", _read(file, 4)))
        for _ in range(num_tensors):
            name = _string(file).decode("utf-8")
            (num_dims,) = struct.unpack("<I", _read(file, 4))
            if num_dims > MAX_DIMS:
                raise ValueError(f"a tensor of {num_dims} dimensions")
            shape = struct.unpack(f"<{num_dims}Q", _read(file, 8 * num_dims))
            _read(file, 12)  # type and offset
            yield name, shape


def _skip(file: BinaryIO, kind: int) -> None:
    """Pass over one value of a GGUF header; arrays of arrays are not in use and are refused."""
    if kind == _STRING:
        _string(file)
    elif kind == _ARRAY:
        item, count = struct.unpack("<IQ", _read(file, 12))
        if count > MAX_ITEMS:
            raise ValueError(f"an array of {count} elements")
        if item == _STRING:
            for _ in range(count):
                _string(file)
        else:
            file.seek(_SCALARS[item] * count, 1)
    else:
        file.seek(_SCALARS[kind], 1)


def _string(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", _read(file, 8))
    return _read(file, length)


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
