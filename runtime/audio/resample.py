"""Change the sampling rate of audio, block by block.

A polyphase filter: the ideal low-pass (sinc) under a Kaiser window, evaluated at the times of the output samples
(A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, section 4.6).
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

ZERO_CROSSINGS = 24  # of the sinc on each side: the length of the filter
KAISER_BETA = 9.0  # side lobes below -90 dB
PASSED = 0.95  # of the lower of the two Nyquist frequencies; above it the filter begins to close
AT_ONCE = 1 << 14  # output samples computed together: bounds what their windows take
PHASES_AT_ONCE = 1 << 9  # of the filter: a rate without a common divisor has 16,000, of thousands of taps at high rates


def resampled(blocks: Iterable[Samples], rate: int, wanted: int) -> Iterator[Samples]:
    """Audio of `rate` samples a second as audio of `wanted`, both float32 [samples].

    The result has ceil(samples * wanted / rate) samples, and depends on the samples alone, not on how they are cut.
    """
    if rate == wanted:
        yield from blocks
        return
    up, down = wanted // math.gcd(rate, wanted), rate // math.gcd(rate, wanted)
    phases = _phases(up, down)  # [up, taps]
    half = phases.shape[1] // 2
    held = np.zeros(half, np.float32)  # input samples that later outputs still need; the first is at `begin`
    begin, taken, made = -half, 0, 0

    def outputs(end: int) -> Iterator[Samples]:
        """Outputs before number `end`, from what is held."""
        nonlocal held, begin, made
        while made < end:
            times = np.arange(made, min(made + AT_ONCE, end), dtype=np.int64) * down
            windows = np.lib.stride_tricks.sliding_window_view(held, 2 * half)
            picked = windows[times // up - half + 1 - begin]
            yield np.einsum("nt,nt->n", picked, phases[times % up], dtype=np.float32)
            made += len(times)
        if (unneeded := made * down // up - half + 1 - begin) > 0:
            held, begin = held[unneeded:], begin + unneeded

    for block in blocks:
        held = np.concatenate([held, block])
        taken += len(block)
        yield from outputs(max(0, (taken - half) * up // down))
    held = np.concatenate([held, np.zeros(2 * half, np.float32)])
    yield from outputs(-(-taken * up // down))


def _phases(up: int, down: int) -> NDArray[np.float32]:
    """The filter at each of the `up` positions that an output may have between two inputs, float32 [up, taps].

    Tap `t` weighs the input `t - half + 1` samples from the one at or before the output.
    """
    cutoff = PASSED * min(1.0, up / down)  # of the input's Nyquist frequency
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    phases = np.empty((up, 2 * half), np.float32)
    for start in range(0, up, PHASES_AT_ONCE):
        part = phases[start : start + PHASES_AT_ONCE]
        distance = np.arange(-half + 1, half + 1)[None] - np.arange(start, start + len(part))[:, None] / up
        window = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / half) ** 2)))
        weights = np.sinc(cutoff * distance) * window
        part[:] = weights / weights.sum(axis=1, keepdims=True)
    return phases
