"""SmoothQuant: move the outliers of an activation into the weights that read it, at no cost at inference.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023.
Input channel j is divided by s_j = act_j^alpha / weight_j^(1 - alpha) and the readers' row j multiplied by it. The
division is folded into what produces the channel: a norm's scale, the columns of up_proj, or the columns of v_proj,
where one factor serves all query heads that share a key-value head.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.calibration.schemes.residual import RATIOS, fine_scale, round_steps
from piston.graph.rounding import Floats, Grid

Groups = NDArray[np.int64]
# Above 0.8 the error on the tokens it was chosen by still falls, and perplexity on other text rises: every channel then
# spans the whole range, and what calibration did not see saturates (SmolLM2-135M, held-out text: +2.0 % perplexity at
# 0.8, +2.8 % when up to 0.9 was allowed, +4.0 % up to 1.0, +3.2 % at 0.65).
ALPHAS = (0.5, 0.6, 0.7, 0.75, 0.8)
# With a remainder activations need less: the weights' own scales suffer for what moves into them.
GENTLE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
START = RATIOS[1]  # most layers end at this ratio or the one below
WORTH = 0.75  # of the error without one: a remainder that leaves more is not worth its product
LOWEST, HIGHEST = 1e-3, 1e4  # of a factor: beyond them float32 products lose the small channels


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The chosen alpha, the factors [K], the ratio of the coarse scale to the fine one, 0 where there is one scale.

    And the output error (see `output_error`) without and with them.
    """

    alpha: float
    factors: Floats
    error_before: float
    error_after: float
    ratio: int = 0


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


def search(  # noqa: PLR0913
    sample: Floats,
    act: Floats,
    weights: list[Floats],
    shared: Groups | None = None,
    lengths: Floats | None = None,
    *,
    can_fold: bool = True,
    remainder: bool = False,
) -> Smoothed:
    """Choose alpha, and the ratio of a remainder, by the error they leave in the readers' outputs.

    Args:
        sample: activations, float32 [tokens, K].
        act: largest activation of each channel over all calibration rows, float32 [K].
        weights: the readers, each float32 [K, N].
        shared: groups of channels that need one factor, int [K].
        lengths: what each token's error is measured against, see `relative_error`; the outputs' own if None.
        can_fold: whether something can absorb factors; else they stay 1.
        remainder: whether what a fine scale leaves over may be rounded once more, see
            `piston.calibration.schemes.residual`.
    """
    joined = np.concatenate(weights, axis=1)
    largest = np.maximum(joined.max(axis=1), -joined.min(axis=1))
    exact = sample @ joined

    def tried(alpha: float, ratio: int = 0) -> Smoothed:
        factors = smoothing_factors(act, largest, alpha, shared) if alpha else np.ones_like(act)
        error = relative_error(_product(sample, act, joined, factors, ratio), exact, lengths)
        return Smoothed(alpha, factors, error, error, ratio)

    plain = tried(0.0)
    best = _least([plain, *(tried(alpha) for alpha in (ALPHAS if can_fold else ()))])
    if remainder and (twice := _with_remainder(tried, can_fold=can_fold)).error_after < WORTH * best.error_after:
        best = twice
    return dataclasses.replace(best, error_before=plain.error_after)


def _with_remainder(tried: Callable[[float, int], Smoothed], *, can_fold: bool) -> Smoothed:
    """Alpha and ratio by turns: each with the best of the other so far."""
    gentle = GENTLE if can_fold else (0.0,)
    first = _least(tried(alpha, START) for alpha in gentle)
    second = _least([first, *(tried(first.alpha, ratio) for ratio in RATIOS if ratio != START)])
    return _least([second, *(tried(alpha, second.ratio) for alpha in gentle if second.ratio != START)])


def _least(candidates: Iterable[Smoothed]) -> Smoothed:
    """The one with the least error, of equal ones the first."""
    return min(candidates, key=lambda found: found.error_after)


def output_error(sample: Floats, act: Floats, weight: Floats, factors: Floats, lengths: Floats | None = None) -> float:
    """`relative_error` of the product with both sides in INT8, as the engine has it."""
    return relative_error(_product(sample, act, weight, factors), sample @ weight, lengths)


def _product(sample: Floats, act: Floats, weight: Floats, factors: Floats, ratio: int = 0) -> Floats:
    """Codes by codes, then both scales; arrays are as large as a model's layers, so they are worked on in place."""
    scale = np.float32(fine_scale(float((act / factors).max()), ratio))
    codes = round_steps(sample / (factors * scale), ratio)
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
