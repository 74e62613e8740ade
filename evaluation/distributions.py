"""Compares two models' logits at the same positions: likelihood of the next token, KL divergence, agreement.

Arithmetic in float64, over blocks of rows, so that no array of positions x vocabulary is ever in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import EngineError
from piston.runtime.backends.engine import Logits

Array = NDArray[np.float64]

_BLOCK = 2**19  # float64 numbers of one temporary: 4 MiB


class Comparison(NamedTuple):
    """Per position, each of shape (positions,)."""

    reference_nll: Array  # nats
    candidate_nll: Array
    kl: Array  # KL(reference || candidate), nats
    is_same_top: NDArray[np.bool_]  # whether the likeliest tokens agree; the lowest id among equals
    logit_distance: Array  # mean of |difference| over the vocabulary


def nll(logits: Logits, targets: Sequence[int]) -> Array:
    """Negative log-likelihood in nats of each target under its row of logits.

    Raises:
        EngineError: a logit is NaN or infinite.
    """
    _check(logits)
    found = [_nll(logits[rows], np.asarray(targets)[rows])[0] for rows in _blocks(logits)]
    return np.concatenate(found)


def compare(reference: Logits, candidate: Logits, targets: Sequence[int]) -> Comparison:
    """Compare two arrays of logits row by row.

    Raises:
        EngineError: a logit is NaN or infinite.
    """
    _check(reference)
    _check(candidate)
    ids = np.asarray(targets)
    blocks = [_compare(reference[rows], candidate[rows], ids[rows]) for rows in _blocks(reference)]
    return Comparison(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _compare(reference: Logits, candidate: Logits, targets: NDArray[np.int64]) -> Comparison:
    reference_nll, weights, log_norm = _nll(reference, targets)
    candidate_nll, _, candidate_log_norm = _nll(candidate, targets)
    difference = np.subtract(reference, candidate, dtype=np.float64)
    # sum of p (log p - log q); the normalizers differ by a constant of the row, which leaves the sum. Equal rows
    # give exactly 0; rounding may give -1e-17 where rows are nearly equal.
    mean_difference = np.einsum("ij,ij->i", weights, difference) / weights.sum(axis=1)
    kl = np.maximum(mean_difference - (log_norm - candidate_log_norm), 0.0)
    is_same_top = reference.argmax(axis=1) == candidate.argmax(axis=1)
    return Comparison(reference_nll, candidate_nll, kl, is_same_top, np.abs(difference).mean(axis=1))


def _nll(logits: Logits, targets: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Negative log-likelihoods, unnormalized probabilities, and the log normalizer of the original logits."""
    highest = logits.max(axis=1).astype(np.float64)
    weights = np.exp(np.subtract(logits, highest[:, None], dtype=np.float64))
    log_norm = np.log(weights.sum(axis=1)) + highest
    return log_norm - logits[np.arange(len(targets)), targets], weights, log_norm


def _blocks(logits: Logits) -> list[slice]:
    rows = max(1, _BLOCK // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _check(logits: Logits) -> None:
    if not (np.isfinite(logits.max(initial=0.0)) and np.isfinite(logits.min(initial=0.0))):
        raise EngineError(
            "The logits hold NaN or infinity: the engine's arithmetic failed; use a bundle of higher precision."
        )
