"""What was decided about a quantization: everything that, with the same data, gives the same model again."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from piston.calibration.linears import Linear
from piston.calibration.observers import Method
from piston.calibration.rounding import Grid
from piston.runtime.errors import MisuseError

Scheme = Literal["w8a8", "w8", "w4"]
Rounding = Literal["nearest", "gptq"]
SCHEMES: tuple[Scheme, ...] = ("w8a8", "w8", "w4")
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "gptq")
HEAD = "lm_head"  # in float unless a scheme says otherwise: it reads the model's last, least redundant values


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize.

    Args:
        scheme: w8a8 quantizes weights and activations to INT8, w8 and w4 weights alone.
        block: inputs that share a scale; 0 for whole output channels.
        rounding: of weights.
        method: how the range of an activation is found (w8a8).
        smooth: move activation outliers into the weights (w8a8).
        keep: linears that stay in float, by module path or pattern.
    """

    scheme: Scheme
    block: int = 0
    rounding: Rounding = "nearest"
    method: Method = "minmax"
    smooth: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES or self.rounding not in ROUNDINGS:
            known = f"schemes: {', '.join(SCHEMES)}; roundings: {', '.join(ROUNDINGS)}"
            raise MisuseError(f"No scheme {self.scheme!r} with rounding {self.rounding!r}; {known}.")
        if self.scheme == "w8a8" and self.block:
            raise MisuseError(f"w8a8 has one scale for each output channel; --block {self.block} is for w8 and w4.")
        if self.scheme == "w8a8" and self.rounding != "nearest":
            raise MisuseError(f"w8a8 rounds weights to nearest; --rounding {self.rounding} is for w8 and w4.")
        if self.scheme != "w8a8" and not self.smooth:
            raise MisuseError(f"--no-smooth is about activations, which {self.scheme} leaves in float.")
        if self.scheme != "w8a8" and self.method != "minmax":
            raise MisuseError(f"--method {self.method} is about activations, which {self.scheme} leaves in float.")
        if self.scheme == "w4" and not self.block:
            raise MisuseError("w4 needs --block 32, 64 or 128: four bits are too few for one scale a channel.")
        _ = self.grid

    @property
    def grid(self) -> Grid:
        """Of the weights."""
        return Grid(4 if self.scheme == "w4" else 8, self.block)

    def chosen(self, linears: Iterable[Linear]) -> list[Linear]:
        """The linears to quantize.

        Raises:
            MisuseError: a pattern of `keep` names no linear.
        """
        linears = list(linears)
        for pattern in self.keep:
            if not any(fnmatch.fnmatchcase(linear.name, pattern) for linear in linears):
                raise MisuseError(f"--keep {pattern!r} names no linear; they are called as {linears[0].name}.")
        kept = (HEAD, *self.keep)
        return [
            linear
            for linear in linears
            if not linear.is_transposed and not any(fnmatch.fnmatchcase(linear.name, pattern) for pattern in kept)
        ]

    def to_json(self) -> dict[str, Any]:
        """For a file and the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what to_json wrote; raises MisuseError for names it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise MisuseError(f"A recipe has no {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        try:
            values: dict[str, Any] = dict(data) | ({"keep": tuple(data["keep"])} if "keep" in data else {})
            return cls(**values)
        except TypeError as problem:
            raise MisuseError(f"The recipe is not complete: {problem}.") from None
