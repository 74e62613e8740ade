"""Work that can go on where it stopped: states of consumers in a file, under a key of what they were made from.

The key covers everything that shapes the result, so a file of other work is never taken for this one's.
"""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.json_text import json_text

State = dict[str, NDArray[Any]]
INTERVAL = 20.0  # seconds between saves, and at least
SPARING = 20.0  # times as long as the last save took


def key_of(settings: Mapping[str, Any]) -> str:
    """A hash of settings that are plain JSON."""
    return hashlib.sha256(json_text(settings, sort_keys=True).encode()).hexdigest()


class ProgressFile:
    """The file of one piece of work in a work directory; without one, nothing is kept.

    Args:
        work_dir: where; made when first written to.
        key: of the work.
    """

    def __init__(self, work_dir: Path | None, key: str) -> None:
        self.path = None if work_dir is None else work_dir / f"collect-{key[:16]}.npz"
        self._key = key
        self._next_save = time.monotonic() + INTERVAL

    def load(self) -> tuple[int, dict[str, State]]:
        """Rows done and the state of each consumer by name; (0, {}) if there is no file, or a damaged one."""
        if self.path is None or not self.path.is_file():
            return 0, {}
        try:
            # Opened here: numpy 2.4 leaves a damaged archive open.
            with self.path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head["key"] != self._key:
                    return 0, {}
                states: dict[str, State] = {name: {} for name in head["names"]}
                for place, (name, part) in enumerate(head["parts"]):
                    states[name][part] = file[f"array{place}"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0, {}
        return int(head["done"]), states

    @property
    def is_due(self) -> bool:
        """Whether the last save is so long ago that another one takes a small share of the time."""
        return self.path is not None and time.monotonic() >= self._next_save

    def save(self, done: int, states: Mapping[str, State]) -> None:
        """Write the file beside its place and rename it there."""
        if self.path is None:
            return
        start = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = [(name, part) for name, state in states.items() for part in state]
        head = {"key": self._key, "done": done, "names": list(states), "parts": parts}
        arrays = {f"array{place}": states[name][part] for place, (name, part) in enumerate(parts)}
        partial = self.path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, head=np.array(json_text(head)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        end = time.monotonic()
        self._next_save = end + max(INTERVAL, SPARING * (end - start))

    def remove(self) -> None:
        """Forget the work."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
