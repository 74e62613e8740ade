"""A few tokens' activations of the rows, kept whole: what errors are measured on. Of many rows, only some."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.numeric.min_max import extremes
from piston.core.errors import CalibrationError
from piston.graph.rounding import Floats

MOST = 1024  # tokens kept


class Sample:
    """The first token of each array and `per_array` others, spread evenly; float32 [tokens, K].

    Beyond MOST tokens every second array is let go, and of those to come only so many are looked at.

    The first token is always among them: its activations are often thousands of times the others', and a scale that
    would cut them off must show what it costs.
    """

    def __init__(self, name: str, per_array: int) -> None:
        self.name = name
        self.per_array = per_array
        self.sizes: list[int] = []  # tokens of each array that is kept
        self.every = 1  # arrays of which one is kept
        self.num_arrays = 0
        self._room: Floats | None = None

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"sample of {self.per_array}"

    @property
    def tokens(self) -> Floats:
        """All that was kept, float32 [tokens, K]; a view, until the next update."""
        if self._room is None:
            raise CalibrationError(f"{self.name} was never computed on the calibration rows.")
        return self._room[: sum(self.sizes)]

    @property
    def parts(self) -> list[Floats]:
        """The same by array."""
        return np.split(self.tokens, np.cumsum(self.sizes)[:-1])

    def update(self, array: Floats) -> None:
        """See Consumer."""
        extremes(array, self.name, per_channel=False)
        self._keep(_picked(array, self.per_array))

    def _keep(self, tokens: Floats) -> None:
        if self.num_arrays % self.every == 0:
            self._append(tokens)
        self.num_arrays += 1
        if sum(self.sizes) > MOST:
            kept, self.sizes, self.every = self.parts[::2], [], 2 * self.every
            for part in kept:
                self._append(part)

    def _append(self, tokens: Floats) -> None:
        """One piece of memory from the first token to the last: small pieces between what comes and goes leave holes.

        Pages that nothing was written to cost nothing.
        """
        if self._room is None:
            self._room = np.empty((MOST + self.per_array + 1, tokens.shape[1]), np.float32)
        start = sum(self.sizes)
        self._room[start : start + len(tokens)] = tokens
        self.sizes.append(len(tokens))

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        if not self.sizes:
            return {}
        return {
            "tokens": self.tokens,
            "sizes": np.array(self.sizes),
            "count": np.array([self.every, self.num_arrays]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Consumer."""
        self.sizes, self.every, self.num_arrays, self._room = [], 1, 0, None
        if state:
            for part in np.split(state["tokens"], np.cumsum(state["sizes"])[:-1]):
                self._append(part)
            self.every, self.num_arrays = map(int, state["count"])


class Lengths(Sample):
    """The Euclidean lengths of those tokens alone: `tokens` is float32 [tokens, 1]."""

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"lengths of {self.per_array}"

    def update(self, array: Floats) -> None:
        """See Consumer."""
        extremes(array, self.name, per_channel=False)
        self._keep(np.linalg.norm(_picked(array, self.per_array), axis=1, keepdims=True))


def _picked(array: Floats, per_array: int) -> Floats:
    """The first token and `per_array` others, [tokens, K]."""
    tokens = array.reshape(-1, array.shape[-1])
    return tokens[np.unique(np.linspace(0, len(tokens) - 1, per_array + 1).astype(np.int64))]
