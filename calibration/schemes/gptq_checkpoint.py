"""Codes of the groups that a long rounding is through with, a file for each: an interrupted one goes on from them.

Each file is renamed into place once it is whole, so whatever stops the work, the files that are there are right.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from piston.calibration.graph.linears import Linear
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.channel_splitting import Source
from piston.core.json_text import json_text
from piston.graph.rounding import Quantized

ROUNDED = "rounded"  # the directory, in the work directory of a calibration
Rounded = dict[str, Quantized]  # by the linear's name


@dataclass(frozen=True, slots=True)
class RoundedGroup:
    """Linears of one input: codes of the weights for what they read once it is split by `source`."""

    weights: Rounded
    source: Source


class RoundedFiles:
    """The files of one work directory.

    Args:
        directory: made here; emptied if what lies in it is of other work.
        key: of everything that shapes the codes, see `key_of`.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.directory = directory
        head = directory / "key.json"
        if not _is_of(head, key):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            head.write_text(json_text(key), encoding="utf-8")

    def load(self, groups: Sequence[Sequence[Linear]], recipe: Recipe) -> list[RoundedGroup]:
        """What the first groups became; of files that cannot be read, or miss one, nothing: the work starts over."""
        found = list[RoundedGroup]()
        for place, group in enumerate(groups[: len(list(self.directory.glob("rounded-*.npz")))]):
            try:
                found.append(_read(self._path(place), group, recipe))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                return []
        return found

    def save(self, place: int, rounded: RoundedGroup) -> None:
        """Keep what the group at `place` became."""
        partial = self.directory / "rounded.part"
        arrays: dict[str, Any] = {"source": rounded.source}
        for index, item in enumerate(rounded.weights.values()):
            arrays |= {f"codes{index}": item.codes, f"scales{index}": item.scales}
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(self._path(place))

    def _path(self, place: int) -> Path:
        return self.directory / f"rounded-{place}.npz"


def _read(path: Path, group: Sequence[Linear], recipe: Recipe) -> RoundedGroup:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        weights = {
            linear.name: Quantized(file[f"codes{index}"], file[f"scales{index}"], recipe.grid_of(linear))
            for index, linear in enumerate(group)
        }
        return RoundedGroup(weights, file["source"])


def _is_of(head: Path, key: str) -> bool:
    try:
        return bool(json.loads(head.read_text(encoding="utf-8")) == key)
    except (OSError, ValueError):
        return False
