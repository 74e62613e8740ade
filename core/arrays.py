"""Arrays by name in .npz files, as users give them and get them back."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError

Array = NDArray[Any]
# What numpy and zipfile raise for damaged, encrypted and unknown archives, and for arrays that do not fit the memory.
DAMAGED = (
    *(ValueError, OSError, EOFError, AttributeError, NotImplementedError, RuntimeError, SyntaxError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; raises MisuseError where it is none."""
    return arrays_of(read_bytes(path), str(path))


def arrays_of(data: bytes, name: str, most_bytes: int | None = None) -> dict[str, Array]:
    """The arrays in the bytes of an .npz file, which `name` stands for in messages.

    Raises:
        MisuseError: it is none, or its arrays have more than `most_bytes`, which a compressed file does not show.
    """
    # numpy takes anything else for a pickle, and advises to load it.
    if not data.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")):
        raise MisuseError(f"{name} is no .npz file of arrays; write it by numpy.savez(FILE, NAME=array).")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise MisuseError(f"{name} holds one array without a name; write it by numpy.savez(FILE, NAME=array).")
            num_bytes = sum(item.file_size for item in zipfile.ZipFile(io.BytesIO(data)).infolist())
            if most_bytes is not None and num_bytes > most_bytes:
                raise MisuseError(
                    f"The arrays of {name} have {num_bytes:,} bytes, more than {most_bytes:,}; send less."
                )
            return {key: archive[key] for key in archive.files}
    except DAMAGED as problem:
        raise MisuseError(f"{name} is no .npz file of arrays ({problem}).") from None


def npz_of(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an .npz file."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()
