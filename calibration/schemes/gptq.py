"""GPTQ: round weights one input at a time and let the inputs not yet rounded make up for the error; then fix.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
algorithm 1, with the inputs that matter most rounded first and all scales chosen beforehand (the authors' act-order and
static groups). Then, in turns, the scales are solved for by least squares with the codes fixed, and every code moves to
where the output's error is least with the others fixed (Behdin et al., "QuantEase", 2023); neither adds to the error.

A hessian here is the gram matrix X^T X [K, K] of a layer's inputs: the output's squared error of a change D of the
weight is the trace of D^T X^T X D.
"""

import numpy as np
from numpy.typing import NDArray

from piston.graph.rounding import Floats, Grid, Quantized, searched_scale

DAMPING = 0.01  # share of the mean diagonal added to it, as in the paper
LAZY = 64  # inputs that are taken together: what those before them did reaches them in one matrix product
TURNS = 2  # of solving for scales and moving codes; a third gains less than a tenth of what the first does
RIDGE = 1e-6  # keeps the least squares of scales solvable where all codes of a block are zero


class Hessian:
    """A gram matrix X^T X [K, K], damped and factorized, for all weights that read its inputs.

    Inputs that calibration never excited count as the mean of `DAMPING` does: they are all but rounded to nearest.
    """

    def __init__(self, gram: NDArray[np.floating]) -> None:
        hessian = damped(gram)
        self.matrix: Floats = hessian.astype(np.float32)
        self.order = np.argsort(-np.diagonal(self.matrix), kind="stable")  # what matters most first
        self.factor = inverse_factor(hessian[self.order][:, self.order])  # in that order

    def solve(self, right: NDArray[np.floating]) -> Floats:
        """H^-1 times `right` [K, N], float32."""
        solution = np.empty(right.shape, np.float32)
        solution[self.order] = self.factor.T @ (self.factor @ right[self.order].astype(np.float32))
        return solution


def gptq(
    weight: Floats, hessian: Hessian, grid: Grid, *, turns: int = TURNS, stays: NDArray[np.bool_] | None = None
) -> Quantized:
    """Quantize weight [K, N] given the hessian of its inputs; where `stays` [K, N] is False codes are zero."""
    if stays is not None:
        weight = np.where(stays, weight, np.float32(0))
    matrix, order = hessian.matrix, hessian.order
    importance = np.diagonal(matrix)
    scales = np.stack([searched_scale(weight[part], grid, importance[part]) for part in grid.block_slices(len(weight))])
    codes = np.empty(weight.shape, np.int8)
    spread = spread_scales(scales, grid, len(weight))
    codes[order] = _round(weight[order], hessian.factor, spread[order], grid, None if stays is None else stays[order])
    quantized = Quantized(codes, scales, grid)
    for _ in range(turns):
        quantized = move_codes(weight, matrix, solve_scales(weight, matrix, quantized), stays)
    return quantized


def damped(gram: NDArray[np.floating]) -> NDArray[np.float64]:
    """The gram matrix with DAMPING added, float64 [K, K]; that of inputs that are always zero is the identity."""
    hessian = gram.astype(np.float64)
    diagonal = np.einsum("ii->i", hessian)  # a view
    diagonal += DAMPING * diagonal.mean() or 1.0
    return np.asarray(hessian, np.float64)


def output_loss(weight: Floats, hessian: NDArray[np.floating], quantized: Quantized) -> float:
    """Squared error of the layer's output over all tokens."""
    change = (weight - quantized.dequantized()).astype(np.float64)
    return float(np.einsum("kn,kn->", change, hessian @ change))


def solve_scales(weight: Floats, hessian: Floats, quantized: Quantized) -> Quantized:
    """The scales of all blocks of each channel, together, that make the output's error least for these codes."""
    grid, codes = quantized.grid, quantized.codes.astype(np.float32)
    parts = grid.block_slices(len(weight))
    system = np.empty((weight.shape[1], len(parts), len(parts)))
    right = np.empty((weight.shape[1], len(parts)))
    for i, part in enumerate(parts):
        right[:, i] = np.einsum("kn,kn->n", codes[part], hessian[part] @ weight)
        for j, other in enumerate(parts[: i + 1]):
            product = hessian[part, other] @ codes[other]
            system[:, i, j] = system[:, j, i] = np.einsum("kn,kn->n", codes[part], product)
    diagonal = np.einsum("nii->ni", system)
    ridge = RIDGE * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
    diagonal += ridge
    right += ridge * quantized.scales.T  # towards the scales there are
    solved = np.linalg.solve(system, right[..., None])[..., 0].T.astype(np.float32)
    usable = np.isfinite(solved) & (solved != 0)
    return Quantized(quantized.codes, np.where(usable, solved, quantized.scales), grid)


def move_codes(
    weight: Floats, hessian: Floats, quantized: Quantized, stays: NDArray[np.bool_] | None = None
) -> Quantized:
    """Move each code in turn to where the output's error is least with all others as they are; `stays` as in `gptq`."""
    grid = quantized.grid
    scales = spread_scales(quantized.scales, grid, len(weight))
    codes = quantized.codes.astype(np.float32)
    error = weight - codes * scales
    for start in range(0, len(weight), LAZY):
        part = slice(start, min(start + LAZY, len(weight)))
        inner = hessian[part, part]
        pull = hessian[part] @ error  # half the negative gradient, but for moves in this part
        moves = np.empty_like(pull)
        for row, steps in enumerate(inner.diagonal()[:, None] * scales[part]):
            k = start + row
            code = codes[k] + (pull[row] - inner[row, :row] @ moves[:row]) / steps
            _saturate(np.rint(code, out=code), grid)
            if stays is not None:
                code *= stays[k]
            moves[row] = (code - codes[k]) * scales[k]
            codes[k] = code
        error[part] -= moves
    return Quantized(codes.astype(np.int8), quantized.scales, grid)


def spread_scales(scales: Floats, grid: Grid, inputs: int) -> Floats:
    """Scales [blocks, N] as [K, N]."""
    lengths = [part.stop - part.start for part in grid.block_slices(inputs)]
    return np.repeat(scales, lengths, axis=0)


def _round(
    weight: Floats, factor: Floats, scales: Floats, grid: Grid, stays: NDArray[np.bool_] | None
) -> NDArray[np.int8]:
    """The paper's algorithm; all arguments in the order in which inputs are rounded, scales and `stays` [K, N]."""
    codes, errors = np.empty(weight.shape, np.int8), np.empty_like(weight)
    for start in range(0, len(weight), LAZY):
        part = slice(start, min(start + LAZY, len(weight)))
        inner, local = factor[part, part], weight[part] - factor[:start, part].T @ errors[:start]
        for row, wanted in enumerate(local):
            k = start + row
            wanted -= inner[:row, row] @ errors[start:k]  # noqa: PLW2901, in place
            code = wanted / scales[k]
            _saturate(np.rint(code, out=code), grid)
            if stays is not None:
                code *= stays[k]
            codes[k] = code
            errors[k] = (wanted - code * scales[k]) / inner[row, row]
    return codes


def _saturate(codes: Floats, grid: Grid) -> None:
    """In place, and without what np.clip costs for a short array."""
    np.minimum(np.maximum(codes, grid.low, out=codes), grid.high, out=codes)


def inverse_factor(hessian: NDArray[np.float64]) -> Floats:
    """Upper Cholesky factor of the inverse, float32 [K, K].

    If H = R R^T with R upper triangular, the inverse of H is (R^-1)^T R^-1: no inverse but R's is needed. R is the
    usual lower factor of H with its inputs in reverse, itself reversed.
    """
    root = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return _triangular_inverse(np.asarray(root, np.float64)).astype(np.float32)


def _triangular_inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """By halves: numpy's own takes no notice of the zeros."""
    half = len(upper) // 2
    if half < LAZY:
        return np.asarray(np.linalg.inv(upper), np.float64)
    inverse = np.zeros_like(upper)
    inverse[:half, :half] = _triangular_inverse(upper[:half, :half])
    inverse[half:, half:] = _triangular_inverse(upper[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ upper[:half, half:] @ inverse[half:, half:]
    return inverse
