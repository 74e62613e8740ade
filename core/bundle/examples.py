"""Inputs of a graph with the outputs that they must give, as one file of a model directory or a bundle."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import BundleCorruptError

EXAMPLES = "examples.npz"
ABSOLUTE, RELATIVE = 1e-4, 1e-4  # of float outputs: the larger of the two, RELATIVE times the largest value
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Example:
    """Arrays by name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def difference(self, name: str, found: Array) -> float:
        """The largest distance of an output; infinite where shape, type, or numbers that are not finite differ.

        Infinity is a number like others, such as that of a mask; NaN is never right.
        """
        wanted = self.outputs[name]
        if found.dtype != wanted.dtype or not same_infinities(found, wanted):
            return float("inf")
        finite = np.isfinite(wanted)
        return float(np.abs(found[finite].astype(np.float64) - wanted[finite].astype(np.float64)).max(initial=0))

    def bound(self, name: str) -> float:
        """How large the difference of an output may be: none for integers and booleans."""
        wanted = self.outputs[name]
        if wanted.dtype.kind != "f":
            return 0.0
        return max(ABSOLUTE, RELATIVE * float(np.abs(wanted).max(initial=0, where=np.isfinite(wanted))))


def same_infinities(found: Array, wanted: Array) -> bool:
    """Whether two arrays have one shape, the same infinities at the same places, and no NaN."""
    if found.shape != wanted.shape:
        return False
    finite = np.isfinite(wanted)
    return bool(np.isfinite(found[finite]).all()) and np.array_equal(found[~finite], wanted[~finite])


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write `NUMBER.in.NAME` and `NUMBER.out.NAME` arrays, the same bytes for the same arrays."""
    arrays = {
        f"{number}.{side}.{name}": array
        for number, example in enumerate(examples)
        for side, group in (("in", example.inputs), ("out", example.outputs))
        for name, array in group.items()
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())


def read_examples(path: Path) -> list[Example]:
    """What `write_examples` wrote; raises BundleCorruptError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as problem:
        raise BundleCorruptError(f"{path} cannot be read ({problem}); make it again.") from None
    examples: dict[int, Example] = {}
    for name, array in arrays.items():
        number, side, tensor = [*name.split(".", 2), "", ""][:3]
        if not number.isdecimal() or side not in {"in", "out"}:
            raise BundleCorruptError(f"{path} has an array named {name!r}, which Piston did not write; make it again.")
        example = examples.setdefault(int(number), Example({}, {}))
        group = example.inputs if side == "in" else example.outputs
        assert isinstance(group, dict)
        group[tensor] = array
    return [examples[number] for number in sorted(examples)]
