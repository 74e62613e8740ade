"""Weights to integers: symmetric scales per output channel or per block, rounded to nearest.

All arrays are [K, N] as MatMul takes them: K inputs (the axis that is summed and blocked), N output channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError

Floats = NDArray[np.float32]
# Clips tried for a scale, as shares of the largest weight: below 1 a few weights saturate and all others round finer.
SCALE_OF_ZEROS = np.float32(2**-14)  # the smallest normal number of float16, in which engines may store scales
CLIPS = np.linspace(1.0, 0.6, 9, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers of `bits` bits, 4 or 8, with one scale for each `block` inputs of each output channel.

    `block` 0 means one scale for the whole channel. Codes run from -2**(bits-1) to 2**(bits-1) - 1; eight-bit codes
    leave -128 out, so that a weight and its negative are equally representable.
    """

    bits: int
    block: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block not in (0, 16, 32, 64, 128, 256):
            raise MisuseError(f"No grid of {self.bits} bits in blocks of {self.block}; 4 or 8 bits, blocks 16 to 256.")

    @property
    def low(self) -> int:
        """The smallest code."""
        return -8 if self.bits == 4 else -127  # noqa: PLR2004

    @property
    def high(self) -> int:
        """The largest code."""
        return 7 if self.bits == 4 else 127  # noqa: PLR2004

    def num_blocks(self, inputs: int) -> int:
        """Scales along K; the last block may be short."""
        return -(-inputs // self.block) if self.block else 1

    def block_slices(self, inputs: int) -> list[slice]:
        """The inputs of each block."""
        size = self.block or inputs
        return [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]


@dataclass(frozen=True, slots=True)
class Outliers:
    """Inputs whose activations stay in float: channels int64 [k] and their weights float32 [k, N]."""

    channels: NDArray[np.int64]
    weight: Floats


@dataclass(frozen=True, slots=True)
class Quantized:
    """Codes int8 [K, N] and scales float32 [blocks, N]: weight = code * scale of its block.

    Where there are outliers their codes are zero, and their weights beside.
    """

    codes: NDArray[np.int8]
    scales: Floats
    grid: Grid
    outliers: Outliers | None = None

    def dequantized(self) -> Floats:
        """The weights the codes stand for, float32 [K, N]."""
        result = self.codes.astype(np.float32)
        for row, part in zip(self.scales, self.grid.block_slices(len(self.codes)), strict=True):
            result[part] *= row
        if self.outliers is not None:
            result[self.outliers.channels] = self.outliers.weight
        return result


def round_to_nearest(weight: Floats, grid: Grid, *, search: bool = False) -> Quantized:
    """Quantize weight [K, N]; `search` chooses each scale by least squared error instead of the largest weight."""
    choose = searched_scale if search else largest_scale
    parts = grid.block_slices(len(weight))
    scales = np.stack([choose(weight[part], grid) for part in parts])
    codes = np.empty(weight.shape, np.int8)
    for part, scale in zip(parts, scales, strict=True):
        codes[part] = encode(weight[part], scale, grid)
    return Quantized(codes, scales, grid)


def encode(weight: Floats, scale: Floats, grid: Grid) -> NDArray[np.int8]:
    """Nearest codes, half to even, saturated."""
    return np.asarray(np.clip(np.rint(weight / scale), grid.low, grid.high), np.int8)


def largest_scale(weight: Floats, grid: Grid) -> Floats:
    """Scale [N] at which the largest weight of each channel of a block [k, N] is the largest code."""
    return _positive(np.abs(weight).max(axis=0) / grid.high)


def searched_scale(weight: Floats, grid: Grid, importance: Floats | None = None) -> Floats:
    """Scale [N] with the least squared rounding error among a grid of clips; `importance` [k] weighs the inputs.

    Four-bit codes reach one further on the negative side: a scale may be negative, which turns that to the side that
    needs it.
    """
    extreme = np.take_along_axis(weight, np.abs(weight).argmax(axis=0)[None], axis=0)[0]
    bases = [np.abs(extreme) / grid.high] if grid.bits == 8 else [np.abs(extreme) / grid.high, extreme / grid.low]  # noqa: PLR2004
    best, least = _positive(bases[0]), np.full(weight.shape[1], np.inf, np.float32)
    rounded = np.empty_like(weight)
    for base in bases:
        for clip in CLIPS:
            scale = _positive(base * clip)
            np.rint(np.divide(weight, scale, out=rounded), out=rounded)
            np.minimum(np.maximum(rounded, grid.low, out=rounded), grid.high, out=rounded)
            np.subtract(weight, np.multiply(rounded, scale, out=rounded), out=rounded)
            squares = np.square(rounded, out=rounded)
            error = squares.sum(axis=0) if importance is None else importance @ squares
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


def _positive(scale: Floats) -> Floats:
    """A channel of zeros gets a small scale: kernels that subtract a zero point leave the rounding error of a code."""
    return np.where(scale == 0, SCALE_OF_ZEROS, scale).astype(np.float32)
