"""A few tokens' activations of every row, kept whole: what errors are measured on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.extremes import extremes
from piston.calibration.rounding import Floats


class Sample:
    """The first token of each array and `per_array` others, spread evenly; float32 [tokens, K].

    The first token is always among them: its activations are often thousands of times the others', and a scale that
    would cut them off must show its harm.
    """

    def __init__(self, name: str, per_array: int) -> None:
        self.name = name
        self.per_array = per_array
        self.parts: list[Floats] = []

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"sample of {self.per_array}"

    @property
    def tokens(self) -> Floats:
        """All that was kept, float32 [tokens, K]."""
        return np.concatenate(self.parts)

    def update(self, array: Floats) -> None:
        """See Consumer."""
        extremes(array, self.name, per_channel=False)
        self.parts.append(_picked(array, self.per_array).astype(np.float32))

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        return {"tokens": self.tokens} if self.parts else {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Consumer."""
        self.parts = [state["tokens"]] if state else []


class Lengths(Sample):
    """The Euclidean lengths of those tokens alone: `tokens` is float32 [tokens, 1]."""

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"lengths of {self.per_array}"

    def update(self, array: Floats) -> None:
        """See Consumer."""
        extremes(array, self.name, per_channel=False)
        self.parts.append(np.linalg.norm(_picked(array, self.per_array), axis=1, keepdims=True).astype(np.float32))


def _picked(array: Floats, per_array: int) -> Floats:
    """The first token and `per_array` others, [tokens, K]."""
    tokens = array.reshape(-1, array.shape[-1])
    return tokens[np.unique(np.linspace(0, len(tokens) - 1, per_array + 1).astype(np.int64))]
