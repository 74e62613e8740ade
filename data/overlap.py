"""Whether a model is evaluated on what it was calibrated with: shared n-grams of tokens.

Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020, appendix C, calls a text contaminated that shares
13 words in a row; here they are tokens. Runs of few different tokens (blanks, rules, padding) are left out: texts share
them by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NGRAM = 13
DISTINCT = 6  # different tokens in an n-gram that counts

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of one set of rows occurs in another."""

    rows: tuple[int, ...]  # indices of the rows that share something
    num_shared: int  # n-grams
    num_ngrams: int

    @property
    def share(self) -> float:
        """Of the n-grams, 0 to 1."""
        return self.num_shared / max(self.num_ngrams, 1)


def overlap(evaluated: Sequence[Ids], calibrated: Sequence[Ids], n: int = NGRAM) -> Overlap:
    """How much of the token rows `evaluated` also occurs in `calibrated`; rows [tokens] of any lengths.

    N-grams are compared by a 64-bit hash: a false match in a million by a million n-grams has a chance of 1 in 10^7.
    """
    known = np.unique(np.concatenate([_hashes(row, n) for row in calibrated] or [np.empty(0, np.uint64)]))
    shared, total, rows = 0, 0, []
    for index, row in enumerate(evaluated):
        hashes = _hashes(row, n)
        # np.isin would sort what is known again for every row.
        found = int((np.searchsorted(known, hashes, "right") > np.searchsorted(known, hashes)).sum())
        shared, total = shared + found, total + len(hashes)
        if found:
            rows.append(index)
    return Overlap(tuple(rows), shared, total)


def _hashes(row: Ids, n: int) -> NDArray[np.uint64]:
    """A hash of each n-gram that counts."""
    if len(row) < n:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(row, np.uint64), n)  # (n-grams, n)
    ordered = np.sort(windows, axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    multipliers = np.random.default_rng(0).integers(1, 2**64, n, np.uint64, endpoint=False) | np.uint64(1)
    mixed = (windows + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * multipliers  # wraps, as it should
    hashes: NDArray[np.uint64] = mixed.sum(axis=1, dtype=np.uint64)[distinct >= min(DISTINCT, n)]
    return hashes
