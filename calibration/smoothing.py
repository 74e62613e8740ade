"""SmoothQuant: move the outliers of an activation into the weights that read it, at no cost at inference.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023.
Input channel j is divided by s_j = act_j^alpha / weight_j^(1 - alpha) and the readers' row j multiplied by it. The
division is folded into what produces the channel: a norm's scale, the columns of up_proj, or the columns of v_proj,
where one factor serves all query heads that share a key-value head.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.calibration.rounding import Floats, Grid

Groups = NDArray[np.int64]
# Above 0.8 the error on the tokens it was chosen by still falls, and perplexity on other text rises: every channel then
# spans the whole range, and what calibration did not see saturates (SmolLM2-135M, held-out text: +2.0 % perplexity at
# 0.8, +2.8 % when up to 0.9 was allowed, +4.0 % up to 1.0, +3.2 % at 0.65).
ALPHAS = (0.5, 0.6, 0.7, 0.75, 0.8)
LOWEST, HIGHEST = 1e-3, 1e4  # of a factor: beyond them float32 products lose the small channels


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The chosen alpha, the factors [K], and the output error (see `output_error`) without and with them."""

    alpha: float
    factors: Floats
    error_before: float
    error_after: float


def smoothing_factors(act: Floats, weight: Floats, alpha: float, shared: Groups | None = None) -> Floats:
    """Factors [K] from the largest activation [K] and the largest weight [K] of each input channel.

    `shared` gives each channel's group (int [K]); all channels of a group get one factor, from their largest values.
    Channels that were never excited keep the factor 1.
    """
    if shared is not None:
        act, weight = _group_max(act, shared), _group_max(weight, shared)
    alive = (act > 0) & (weight > 0)
    safe_act, safe_weight = np.where(alive, act, 1), np.where(alive, weight, 1)
    factors = np.clip(safe_act**alpha / safe_weight ** (1 - alpha), LOWEST, HIGHEST)
    # Only ratios matter: a common factor would cancel in the scales.
    center = np.exp(np.log(factors[alive]).mean()) if alive.any() else 1.0
    return np.where(alive, factors / center, 1).astype(np.float32)


def search(
    sample: Floats, act: Floats, weights: list[Floats], shared: Groups | None = None, lengths: Floats | None = None
) -> Smoothed:
    """Choose alpha by the error it leaves in the readers' outputs.

    Args:
        sample: activations, float32 [tokens, K].
        act: largest activation of each channel over all calibration rows, float32 [K].
        weights: the readers, each float32 [K, N].
        shared: groups of channels that need one factor, int [K].
        lengths: what each token's error is measured against, see `relative_error`; the outputs' own if None.
    """
    joined = np.concatenate(weights, axis=1)
    largest = np.maximum(joined.max(axis=1), -joined.min(axis=1))
    exact = sample @ joined

    def error(factors: Floats) -> float:
        return relative_error(_product(sample, act, joined, factors), exact, lengths)

    before = error(np.ones_like(act))
    best = Smoothed(0.0, np.ones_like(act), before, before)
    for alpha in ALPHAS:
        factors = smoothing_factors(act, largest, alpha, shared)
        if (after := error(factors)) < best.error_after:
            best = Smoothed(alpha, factors, before, after)
    return best


def output_error(sample: Floats, act: Floats, weight: Floats, factors: Floats, lengths: Floats | None = None) -> float:
    """`relative_error` of the product with both sides in INT8, as the engine has it."""
    return relative_error(_product(sample, act, weight, factors), sample @ weight, lengths)


def _product(sample: Floats, act: Floats, weight: Floats, factors: Floats) -> Floats:
    """Codes by codes, then both scales; arrays are as large as a model's layers, so they are worked on in place."""
    scale = np.float32((act / factors).max() / 127 or 1.0)
    codes = sample / (factors * scale)
    np.clip(np.rint(codes, out=codes), -128, 127, out=codes)
    levels = weight * factors[:, None]
    steps = np.maximum(levels.max(axis=0), -levels.min(axis=0)) / np.float32(Grid(8).high)
    steps = np.where(steps == 0, np.float32(1), steps)
    np.rint(np.divide(levels, steps, out=levels), out=levels)
    product = codes @ levels
    product *= steps * scale
    return np.asarray(product, np.float32)


def relative_error(found: Floats, exact: Floats, lengths: Floats | None = None) -> float:
    """Squared error of a token by the squared length of what it disturbs.

    That is the residual stream the output is added to, where it is, and all tokens' mean: norms behind it divide by its
    length, so that a first token whose activations are a thousand times the others' counts as they do, and an output
    that hardly moves its token hardly counts. Elsewhere it is the token's own output, and the median: values of first
    tokens are next to nothing, and what is wrong with them is of no consequence.

    Args:
        found: outputs, float32 [tokens, N].
        exact: the same in float.
        lengths: of what each token's output is added to, float32 [tokens]; None if it is not.
    """
    squares = np.square(exact).sum(axis=1) if lengths is None else np.square(lengths)
    share = np.square(found - exact).sum(axis=1) / np.maximum(squares, np.finfo(np.float32).tiny)
    return float(np.median(share) if lengths is None else share.mean())


def _group_max(values: Floats, shared: Groups) -> Floats:
    largest = np.zeros(int(shared.max()) + 1, np.float32)
    np.maximum.at(largest, shared, values)
    return largest[shared]
