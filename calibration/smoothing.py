"""SmoothQuant: move the outliers of an activation into the weights that read it, at no cost at inference.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023: input
channel j is divided by s_j = act_j^alpha / weight_j^(1 - alpha) and the readers' row j multiplied by it. The division
is folded into what produces the channel: a norm's scale, the columns of up_proj, or the columns of v_proj, where one
factor serves all query heads that share a key-value head.
"""

from dataclasses import dataclass

import numpy as np

from piston.calibration.rounding import Floats, Grid, round_to_nearest

ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
LOWEST, HIGHEST = 1e-3, 1e4  # of a factor: beyond them float32 products lose the small channels


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The chosen alpha, the factors [K], and the squared output error without and with them."""

    alpha: float
    factors: Floats
    error_before: float
    error_after: float


def smoothing_factors(act: Floats, weight: Floats, alpha: float, shared: Floats | None = None) -> Floats:
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


def search(sample: Floats, act: Floats, weights: list[Floats], shared: Floats | None = None) -> Smoothed:
    """Choose alpha by the error it leaves in the readers' outputs.

    Args:
        sample: activations, float32 [tokens, K].
        act: largest activation of each channel over all calibration rows, float32 [K].
        weights: the readers, each float32 [K, N].
        shared: groups of channels that need one factor, int [K].
    """
    joined = np.concatenate(weights, axis=1)
    largest = np.abs(joined).max(axis=1)
    exact = sample @ joined
    before = _error(sample, act, joined, exact, np.ones_like(act))
    best = Smoothed(0.0, np.ones_like(act), before, before)
    for alpha in ALPHAS:
        factors = smoothing_factors(act, largest, alpha, shared)
        error = _error(sample, act, joined, exact, factors)
        if error < best.error_after:
            best = Smoothed(alpha, factors, before, error)
    return best


def _error(sample: Floats, act: Floats, weight: Floats, exact: Floats, factors: Floats) -> float:
    """Squared error of the product with both sides in INT8, as the engine will have them."""
    scale = float((act / factors).max()) / 127 or 1.0
    codes = np.clip(np.rint(sample / factors / scale), -128, 127)
    rounded = round_to_nearest(weight * factors[:, None], Grid(8)).dequantized()
    return float(np.square(codes * np.float32(scale) @ rounded - exact).sum())


def _group_max(values: Floats, shared: Floats) -> Floats:
    groups = shared.astype(np.int64)
    largest = np.zeros(int(groups.max()) + 1, values.dtype)
    np.maximum.at(largest, groups, values)
    return largest[groups]
