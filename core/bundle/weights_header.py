"""What GGUF and safetensors files say of their tensors: names, shapes, and where the data ends. No weight is read."""

import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEADER = 100_000_000  # bytes: the bound of the safetensors format
MAX_ITEMS = 1_000_000  # tensors or keys of a GGUF header, and elements of an array in it
MAX_DIMS = 8
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF value type: bytes
_GGUF = b"GGUF"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT = 32  # of GGUF tensors, unless the file says otherwise
# Type of a GGUF tensor: weights in a block, bytes of a block.
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; its data ends before byte `end` of the file."""

    shape: tuple[int, ...]
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a .gguf or .safetensors file by name.

    Raises:
        ValueError: its header cannot be read.
    """
    try:
        return dict(_gguf(path) if _begins_with(path, _GGUF) else _safetensors(path))
    except _UNREADABLE as problem:
        raise ValueError(f"its header cannot be read ({problem})") from problem


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of weights, as far as its size tells; None where that is nothing."""
    size = path.stat().st_size
    if path.suffix in {".gguf", ".safetensors"} or _begins_with(path, _GGUF):
        try:
            end = max((tensor.end for tensor in read_header(path).values()), default=0)
        except ValueError as problem:
            return str(problem)
        return None if end <= size else f"it was cut short: its tensors end at byte {end:,}, and it has {size:,}"
    if _begins_with(path, b"PK") and not zipfile.is_zipfile(path):  # as torch.save writes them
        return "it was cut short: the end of its archive is missing"
    return None


def missing_shards(path: Path) -> list[str]:
    """The files of weights that a directory's index, or the name of a GGUF file, tells of and that are not there."""
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


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", _read(file, 8))
        header: Any = json.loads(_read(file, length))
    if not isinstance(header, Mapping):
        raise TypeError("it is no object")
    for name, tensor in header.items():
        if name != "__metadata__":
            shape = tuple(_natural(size) for size in tensor["shape"])
            yield name, Tensor(shape, 8 + length + _natural(tensor["data_offsets"][1]))


def _gguf(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Versions 2 and 3 of the format, little-endian."""
    alignment, found = _ALIGNMENT, list[tuple[str, tuple[int, ...], int, int]]()
    with path.open("rb") as file:
        magic, version, num_tensors, num_keys = struct.unpack("<4sIQQ", _read(file, 24))
        if magic != _GGUF or version not in {2, 3} or max(num_tensors, num_keys) > MAX_ITEMS:
            raise ValueError("it is of no version that is known")
        for _ in range(num_keys):
            key, (kind,) = _string(file), struct.unpack("<I", _read(file, 4))
            if key == b"general.alignment" and kind == _UINT32:
                (alignment,) = struct.unpack("<I", _read(file, 4))
            else:
                _skip(file, kind)
        for _ in range(num_tensors):
            name = _string(file).decode("utf-8")
            (num_dims,) = struct.unpack("<I", _read(file, 4))
            if num_dims > MAX_DIMS:
                raise ValueError(f"a tensor of {num_dims} dimensions")
            shape = struct.unpack(f"<{num_dims}Q", _read(file, 8 * num_dims))
            found.append((name, shape, *struct.unpack("<IQ", _read(file, 12))))
        start = math.ceil(file.tell() / max(alignment, 1)) * max(alignment, 1)
    for name, shape, kind, offset in found:
        weights, size = BLOCKS.get(kind, (1, 0))  # of a type that is not known the beginning alone is
        yield name, Tensor(shape, start + offset + math.prod(shape) // weights * size)


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
        raise ValueError(f"it has {count} bytes")
    data = file.read(count)
    if len(data) != count:
        raise ValueError("the file ends within it")
    return data


def _natural(size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"a size of {size!r}")
    return size
