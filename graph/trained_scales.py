"""Scales that were trained together with their weights: what a distillation gives a calibration, as one .npz file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np

from piston.core.errors import MisuseError
from piston.graph.rounding import Floats

FILE_NAME = "scales.npz"
WEIGHT, INPUT = ".weight", ".input"


@dataclass(frozen=True, slots=True)
class TrainedScales:
    """By the path of a linear: the scales of its weight, and the scale and the residual's ratio of its input."""

    weights: Mapping[str, Floats] = field(default_factory=dict)  # float32 [blocks, N], as Quantized has them
    inputs: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # ratio 0: no residual

    def to_bytes(self) -> bytes:
        """The file; the same scales give the same bytes."""
        arrays = {f"{name}{WEIGHT}": scales for name, scales in sorted(self.weights.items())}
        arrays |= {f"{name}{INPUT}": np.array(pair, np.float64) for name, pair in sorted(self.inputs.items())}
        buffer = BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            weights = {name.removesuffix(WEIGHT): arrays[name] for name in arrays.files if name.endswith(WEIGHT)}
            pairs = {name.removesuffix(INPUT): arrays[name] for name in arrays.files if name.endswith(INPUT)}
        return cls(weights, {name: (float(scale), int(ratio)) for name, (scale, ratio) in pairs.items()})

    @classmethod
    def beside(cls, recipe: Path, sha256: str) -> Self:
        """Read the file next to a recipe, which names its hash.

        Raises:
            MisuseError: there is none, or it is another one.
        """
        path = recipe.parent / FILE_NAME
        try:
            data = path.read_bytes()
        except OSError as problem:
            raise MisuseError(
                f"{recipe} needs the scales it was trained with, {path}: {problem.strerror}; keep both files "
                "of the student together."
            ) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise MisuseError(
                f"{path} does not have the SHA-256 that {recipe} names; use the two files of one student."
            )
        return cls.from_bytes(data)
