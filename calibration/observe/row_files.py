"""Arrays that are written and read once, on disk, a file for each; files of what is dead are written over.

Threads may save and load side by side, each under keys of its own.

Making new pages for a file costs as much as filling them.
"""

import functools
import json
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import CalibrationError
from piston.core.json_text import json_text

HEAD = 128  # bytes before an array's own: its dtype and shape as JSON


class RowFiles:
    """Arrays by key, a part of a file name.

    Args:
        directory: made when the first is saved.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._dead: dict[Path, None] = {}
        self._lock = Lock()  # of the dead

    def save(self, key: str, array: NDArray[Any]) -> None:
        """Keep a copy, instead of what the key had."""
        path, array = self._path(key), np.asarray(array, order="C")
        with self._lock:
            self._dead.pop(path, None)  # alive again
            spare = self._dead.popitem()[0] if self._dead else None
        if spare is not None:
            spare.replace(path)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            path.touch()
        with path.open("r+b") as file:
            file.write(json_text([array.dtype.str, array.shape]).encode().ljust(HEAD))
            file.write(array.reshape(-1).view(np.uint8).data)
            file.truncate()

    def load(self, key: str) -> NDArray[Any]:
        """What was saved.

        Raises:
            CalibrationError: it is not all there.
        """
        with self._path(key).open("rb") as file:
            if len(head := file.read(HEAD)) == HEAD:
                dtype, shape = _parsed(head)
                array: NDArray[Any] = np.empty(shape, dtype)
                if file.readinto(array.reshape(-1).view(np.uint8).data) == array.nbytes:
                    return array
        raise CalibrationError(f"{self._path(key)} was cut short; remove {self.directory} and calibrate anew.")

    def drop(self, key: str) -> None:
        """Give the file to an array that is saved later; what the key had is not loaded again."""
        path = self._path(key)
        if path.exists():
            self._dead[path] = None

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.row"


@functools.lru_cache
def _parsed(head: bytes) -> tuple[str, list[int]]:
    dtype, shape = json.loads(head)
    return dtype, shape
