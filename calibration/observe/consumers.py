"""What inner values are fed to while calibration rows run: observers, and sums for smoothing and GPTQ."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from piston.calibration.numeric.histogram import State
from piston.calibration.numeric.min_max import Floats, extremes


class Consumer(Protocol):
    """Takes a value's arrays one after the other and can stop and go on. Every `Observer` is one."""

    @property
    def kind(self) -> str:
        """Names whatever shapes the state: a state of the same kind can be restored."""

    def update(self, array: Floats) -> None:
        """Take float32 [1, tokens, ...]; the array may be kept, at its price in memory."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything taken, for a file; empty if nothing was. May be the arrays themselves."""

    def restore(self, state: State) -> None:
        """Become what `state` was taken of."""


class Gram:
    """X^T X of all tokens, summed in float64 [K, K], and their number: what GPTQ and output errors need.

    With `unit_tokens` each token is first brought to length one, so that all count alike: the first token's activations
    can be a thousand times the others', and the matrix would be theirs alone.
    """

    def __init__(self, name: str, *, unit_tokens: bool = False) -> None:
        self.name = name
        self.unit_tokens = unit_tokens
        self.matrix: NDArray[np.float64] | None = None
        self.num_tokens = 0

    @property
    def kind(self) -> str:
        """See Consumer."""
        return "gram of unit tokens" if self.unit_tokens else "gram"

    def update(self, array: Floats) -> None:
        """See Consumer; the product of each array is taken in float32."""
        extremes(array, self.name, per_channel=False)
        tokens = array.reshape(-1, array.shape[-1])
        if self.unit_tokens:
            lengths: Floats = np.linalg.norm(tokens, axis=1, keepdims=True)
            tokens = np.divide(tokens, np.where(lengths == 0, 1, lengths), dtype=np.float32)
        product = tokens.T @ tokens
        if self.matrix is None:
            self.matrix = np.zeros(product.shape, np.float64)
        self.matrix += product
        self.num_tokens += len(tokens)

    def merge(self, other: "Gram") -> None:
        """Add the tokens of another one."""
        if other.matrix is not None:
            self.matrix = other.matrix.copy() if self.matrix is None else self.matrix + other.matrix
            self.num_tokens += other.num_tokens

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        return {} if self.matrix is None else {"matrix": self.matrix, "num_tokens": np.array(self.num_tokens)}

    def restore(self, state: State) -> None:
        """See Consumer."""
        self.matrix = state["matrix"] if state else None
        self.num_tokens = int(state["num_tokens"]) if state else 0


class DropChannels:
    """Feeds a consumer all channels but some."""

    def __init__(self, consumer: Consumer, channels: NDArray[np.int64]) -> None:
        self.consumer, self.channels = consumer, channels

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"{self.consumer.kind} without {self.channels.tolist()}"

    def update(self, array: Floats) -> None:
        """See Consumer."""
        self.consumer.update(np.delete(array, self.channels, axis=-1))

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        return self.consumer.state()

    def restore(self, state: State) -> None:
        """See Consumer."""
        self.consumer.restore(state)


class Tee:
    """Feeds one value to several consumers."""

    def __init__(self, *consumers: Consumer) -> None:
        self.consumers = consumers

    @property
    def kind(self) -> str:
        """See Consumer."""
        return " + ".join(consumer.kind for consumer in self.consumers)

    def update(self, array: Floats) -> None:
        """See Consumer."""
        for consumer in self.consumers:
            consumer.update(array)

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        states = enumerate(consumer.state() for consumer in self.consumers)
        return {f"{place}.{part}": array for place, state in states for part, array in state.items()}

    def restore(self, state: State) -> None:
        """See Consumer."""
        for place, consumer in enumerate(self.consumers):
            own = {part: state[f"{place}.{part}"] for part in _parts(state, f"{place}.")}
            consumer.restore(own)


def _parts(state: State, start: str) -> list[str]:
    return [name.removeprefix(start) for name in state if name.startswith(start)]
