"""Random linear layers as Piston's kernels read them, and codes to compare with theirs."""

import math

import numpy as np

SCALE = np.float32(0.02)


def tiled(weight):
    depth, width = weight.shape
    return np.stack(
        [
            weight[:, column : column + 16].reshape(depth // 4, 4, 16).transpose(0, 2, 1)
            for column in range(0, width, 16)
        ]
    ).reshape(width // 16, depth // 4, 64)


def linear(rng, rows, depth, width):
    codes = rng.integers(0, 256, (1, rows, depth), np.uint8)
    weight = rng.integers(-128, 128, (depth, width), np.int8)
    offset = 128 * weight.astype(np.int32).sum(axis=0)
    scale = rng.uniform(1e-4, 1e-3, width).astype(np.float32)
    exact = (codes.astype(np.int64) - 128) @ weight.astype(np.int64) * scale.astype(np.float64)
    return codes, weight, offset.astype(np.int32), scale, exact


def codes_of(values, scale):
    return np.clip(np.rint(values / scale) + 128, 0, 255)


def assert_codes(found, values, scale):
    apart = np.abs(found.astype(int) - codes_of(values, scale))
    assert apart.max() <= 1  # a value on the edge between two codes
    assert (apart > 0).mean() < 1e-3


def gelu(values, *, tanh):
    if tanh:
        return values / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
    return values / 2 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))
