"""GPTQ: round weights one input at a time and let the inputs not yet rounded make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
algorithm 1, with scales searched when a block begins and inputs taken in their order.
"""

import numpy as np
from numpy.typing import NDArray

from piston.calibration.rounding import Floats, Grid, Quantized, encode, searched_scale

DAMPING = 0.01  # share of the mean diagonal added to it, as in the paper
LAZY = 128  # inputs after which the error reaches all that follow: one matrix product instead of many vectors


def gptq(weight: Floats, gram: NDArray[np.float64], grid: Grid) -> Quantized:
    """Quantize weight [K, N] given the gram matrix X^T X [K, K] of its inputs.

    Inputs that calibration never excited have a zero diagonal; they are rounded to nearest.
    """
    inputs = len(weight)
    factor = _inverse_factor(gram)
    weight = weight.astype(np.float32).copy()
    codes = np.empty(weight.shape, np.int8)
    scales: list[Floats] = []
    step = grid.block or LAZY
    scale = searched_scale(weight, grid)
    for start in range(0, inputs, step):
        part = slice(start, min(start + step, inputs))
        if grid.block:
            scale = searched_scale(weight[part], grid)
            scales.append(scale)
        codes[part], errors = _round_block(weight[part], factor[part, part], scale, grid)
        weight[part.stop :] -= factor[part, part.stop :].T @ errors
    return Quantized(codes, np.stack(scales or [scale]), grid)


def _round_block(weight: Floats, factor: Floats, scale: Floats, grid: Grid) -> tuple[NDArray[np.int8], Floats]:
    """Round a block [k, N] input by input; returns codes and the scaled errors [k, N] for what follows."""
    weight = weight.copy()
    codes, errors = np.empty(weight.shape, np.int8), np.empty_like(weight)
    for row in range(len(weight)):
        codes[row] = encode(weight[row], scale, grid)
        errors[row] = (weight[row] - codes[row] * scale) / factor[row, row]
        weight[row + 1 :] -= np.outer(factor[row, row + 1 :], errors[row])
    return codes, errors


def _inverse_factor(gram: NDArray[np.float64]) -> Floats:
    """Upper Cholesky factor of the inverse of the damped gram matrix, float32 [K, K]."""
    gram = gram.astype(np.float64).copy()
    diagonal = np.einsum("ii->i", gram)  # a view
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += DAMPING * diagonal.mean()
    inverse = np.linalg.inv(gram)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
