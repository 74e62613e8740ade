"""How large the keys and values get that a model writes into its cache, channel by channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.numeric.min_max import extremes
from piston.graph.rounding import Floats


@dataclass(frozen=True, slots=True)
class Rotation:
    """Which channels a rotary embedding turns into each other: `width` of them, neighbours or halves apart."""

    width: int
    is_interleaved: bool

    @classmethod
    def of(cls, new: ir.Value) -> Self | None:
        """Of new keys [batch, heads, seq, head_dim], or None where nothing rotates them last."""
        node = new.producer()
        if node is None or node.op_type != "RotaryEmbedding" or new.shape is None:
            return None
        head_dim, attributes = new.shape[-1], node.attributes
        width = attributes["rotary_embedding_dim"].as_int() if "rotary_embedding_dim" in attributes else 0
        interleaved = attributes["interleaved"].as_int() if "interleaved" in attributes else 0
        assert isinstance(head_dim, int)
        return cls(width or head_dim, bool(interleaved))

    def pairs(self) -> tuple[slice, slice]:
        """The channels that are turned into each other."""
        if self.is_interleaved:
            return slice(0, self.width, 2), slice(1, self.width, 2)
        return slice(0, self.width // 2), slice(self.width // 2, self.width)


class CacheRange:
    """The largest magnitude of each channel of each head, float32 [heads, head_dim], whatever the position.

    A rotary embedding turns a pair of channels by an angle that grows with the position, and slow pairs need thousands
    of positions to come around: a key seen at position 100 has another shape at 4,000, but the same length. So both
    channels of a pair get the largest length of the pair, and what is measured on short rows holds for long ones.
    """

    def __init__(self, name: str, rotation: Rotation | None = None) -> None:
        self.name = name
        self.rotation = rotation
        self.largest: Floats | None = None

    @property
    def kind(self) -> str:
        """See Consumer."""
        return f"cache {self.rotation}"

    def update(self, array: Floats) -> None:
        """Take new keys or values [batch, heads, tokens, head_dim]."""
        extremes(array, self.name, per_channel=False)
        largest = np.abs(array).max(axis=(0, 2))  # (heads, head_dim)
        if self.rotation is not None:
            one, other = self.rotation.pairs()
            lengths = np.hypot(array[..., one], array[..., other]).max(axis=(0, 2))
            largest[:, one] = largest[:, other] = lengths
        self.largest = largest if self.largest is None else np.maximum(self.largest, largest)

    def state(self) -> dict[str, NDArray[Any]]:
        """See Consumer."""
        return {} if self.largest is None else {"largest": self.largest}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Consumer."""
        self.largest = state["largest"] if state else None
