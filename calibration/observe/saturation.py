"""How much of a tensor lies beyond its INT8 range, on text that the range was not found on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.numeric.min_max import extremes
from piston.calibration.observe.collect import collect
from piston.core.console import Progress
from piston.data.packing import Ids
from piston.graph.rounding import Floats

HIGHEST = 127.5  # steps: beyond it a value becomes another than its nearest code


@dataclass(frozen=True, slots=True)
class Saturated:
    """Of one tensor: values beyond the range, how many there were, and the largest in shares of the range."""

    num_beyond: int
    num_values: int
    largest: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.num_beyond / max(self.num_values, 1)


class Saturation:
    """Counts; the scale is one, or an array that goes with the values."""

    def __init__(self, name: str, scale: Floats) -> None:
        self.name = name
        self.scale = scale
        self.found = Saturated(0, 0, 0.0)

    @property
    def kind(self) -> str:
        """See Consumer."""
        return "saturation"

    def update(self, array: Floats) -> None:
        """See Consumer."""
        extremes(array, self.name, per_channel=False)
        steps = np.abs(array) / self.scale
        found = self.found
        self.found = Saturated(
            found.num_beyond + int((steps > HIGHEST).sum()),
            found.num_values + array.size,
            max(found.largest, float(steps.max()) / HIGHEST),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        found = self.found
        return {"found": np.array([found.num_beyond, found.num_values, found.largest])}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Consumer."""
        beyond, values, largest = state["found"].tolist() if state else (0, 0, 0.0)
        self.found = Saturated(int(beyond), int(values), float(largest))


def saturations(
    directory: Path, rows: Ids, scales: Mapping[str, Floats], work: Path, progress: Progress
) -> dict[str, Saturated]:
    """Run the prepared float model directory over `rows` and count, by name of the value."""
    consumers = {name: Saturation(name, scale) for name, scale in scales.items()}
    collect(directory, rows, consumers, work_dir=work / "saturation", progress=progress, name="counting saturations")
    return {name: consumer.found for name, consumer in consumers.items()}
