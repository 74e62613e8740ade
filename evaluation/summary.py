"""Computes the figures of a report from the scores of tokens."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from piston.core.statistics import Array, ConfidenceInterval, bootstrap_mean, wilson
from piston.evaluation.corpus import Corpus
from piston.evaluation.distributions import Comparison
from piston.evaluation.report import Agreement, ContextBin, Data, Divergences, WindowScore
from piston.evaluation.scoring import Scores
from piston.evaluation.windows import Windowing
from piston.runtime.text.tokenizer import Tokenizer

EDGES = tuple(float(f"{10 ** (half / 2):.4g}") for half in range(-20, 5))  # of the KL histogram: half decades
NUM_BINS = 16  # of agreement by context
_HIGHEST = 700.0  # nats; exp of more overflows a float


def perplexity_of(nll: float) -> float:
    """Exp of a mean negative log-likelihood, or of a difference of two, capped at 1e304."""
    return math.exp(max(min(nll, _HIGHEST), -_HIGHEST))


def mean_estimate(parts: list[Array], counts: Array, seed: int) -> ConfidenceInterval:
    """Mean over all tokens of all windows, with a bootstrap interval over the windows."""
    sums = np.array([part.sum() for part in parts])
    interval = bootstrap_mean(sums, counts, np.random.default_rng(seed))
    return ConfidenceInterval(float(sums.sum() / counts.sum()), *(interval or ()))


def mapped(estimate: ConfidenceInterval, function: Callable[[float], float]) -> ConfidenceInterval:
    """Apply an increasing function to the figure and to both ends of its interval."""
    ends = (None if end is None else function(end) for end in (estimate.low, estimate.high))
    return ConfidenceInterval(function(estimate.value), *ends)


def data_of(corpus: Corpus, windowing: Windowing, scores: Scores, tokenizer: Tokenizer) -> Data:
    """Describe the scored text."""
    return Data(
        path=corpus.path,
        sha256=corpus.sha256,
        num_documents=len(corpus.documents),
        num_tokens=corpus.num_tokens,
        num_scored=int(scores.counts.sum()),
        num_bytes=_num_bytes(corpus, tokenizer),
        window=windowing.length,
        stride=windowing.stride,
        num_windows=len(scores.windows),
        prefix_ids=corpus.documents[0].prefix,
        rule=windowing.rule,
    )


def agreement_of(scores: Scores, seed: int) -> Agreement:
    """The two models compared."""
    counts = scores.counts
    same = np.concatenate([item.is_same_top for item in scores.comparisons])
    difference = [item.candidate_nll - item.reference_nll for item in scores.comparisons]
    return Agreement(
        kl=_divergences([item.kl for item in scores.comparisons], counts, seed),
        top1=_share(same),
        logit_distance=float(np.concatenate([item.logit_distance for item in scores.comparisons]).mean()),
        perplexity_ratio=mapped(mean_estimate(difference, counts, seed), perplexity_of),
        by_context=_by_context(same, np.concatenate(scores.contexts)),
    )


def windows_of(scores: Scores) -> tuple[WindowScore, ...]:
    """The figures of each window."""
    comparisons: Sequence[Comparison | None] = scores.comparisons or [None] * len(scores.windows)
    return tuple(
        WindowScore(
            document=document,
            start=window.start,
            num_scored=window.num_scored,
            perplexity=perplexity_of(float(nll.mean())),
            reference_perplexity=None if found is None else perplexity_of(float(found.reference_nll.mean())),
            kl=None if found is None else float(found.kl.mean()),
            top1=None if found is None else float(found.is_same_top.mean()),
        )
        for (document, window), nll, found in zip(scores.windows, scores.nll, comparisons, strict=True)
    )


def _divergences(parts: list[Array], counts: Array, seed: int) -> Divergences:
    kl = np.concatenate(parts)
    p50, p99 = np.quantile(kl, [0.5, 0.99])
    above = kl[kl > EDGES[0]]
    histogram = np.histogram(np.minimum(above, EDGES[-1]), EDGES)[0]
    return Divergences(
        mean=mean_estimate(parts, counts, seed),
        p50=float(p50),
        p99=float(p99),
        max=float(kl.max()),
        num_zero=len(kl) - len(above),
        edges=EDGES,
        counts=tuple(int(count) for count in histogram),
    )


def _by_context(same: NDArray[np.bool_], contexts: NDArray[np.int64]) -> tuple[ContextBin, ...]:
    """Bins of equal width from the shortest context to the longest; those without tokens are left out."""
    low, high = int(contexts.min()), int(contexts.max())
    width = -(-(high - low + 1) // NUM_BINS)
    bins = []
    for first in range(low, high + 1, width):
        inside = same[(contexts >= first) & (contexts < first + width)]
        if len(inside):
            last = min(first + width - 1, high)
            found = _share(inside)
            bins.append(ContextBin(first_context=first, last_context=last, num_tokens=len(inside), top1=found))
    return tuple(bins)


def _share(hits: NDArray[np.bool_]) -> ConfidenceInterval:
    num_hits, total = int(hits.sum()), len(hits)
    return ConfidenceInterval(num_hits / total, *wilson(num_hits, total))


def _num_bytes(corpus: Corpus, tokenizer: Tokenizer) -> int:
    """Number of UTF-8 bytes of the scored tokens."""
    total = 0
    for document in corpus.documents:
        previous: int | None = None
        for index, token_id in enumerate(document.token_ids):
            if index or document.prefix:
                total += len(tokenizer.bytes_after(previous, token_id))
            previous = token_id
    return total
