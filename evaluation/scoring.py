"""Runs one or two engines over the windows of a text and keeps a few numbers per token, not the logits."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.evaluation.corpus import Corpus, Document
from piston.evaluation.distributions import Comparison, compare, nll
from piston.evaluation.windows import Window, Windowing
from piston.runtime.backends.engine import Engine, Logits

Array = NDArray[np.float64]

_LOGITS = 2**25  # float32 logits of one prefill: 128 MiB


@dataclass(slots=True)
class Reading:
    """One engine on one slot, and the time it took."""

    engine: Engine
    slot: int
    seconds: float = 0.0
    num_tokens: int = 0

    def logits(self, token_ids: Sequence[int], num_targets: int) -> Iterator[Logits]:
        """Yield logits of the last `num_targets` tokens of a new text, a bounded number of rows at a time."""
        rows = max(1, _LOGITS // self.engine.vocab_size)
        self.engine.cache.rewind(self.slot, 0)
        start, first = 0, len(token_ids) - num_targets
        for done in range(0, num_targets, rows):
            count = min(rows, num_targets - done)
            end = first + done + count
            began = time.perf_counter()
            found = self.engine.prefill(self.slot, token_ids[start:end], num_logits=count)
            self.seconds += time.perf_counter() - began
            self.num_tokens += end - start
            yield found
            start = end

    @property
    def tokens_per_s(self) -> float:
        """Tokens read, context included, over the engine's own time."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Scores:
    """Scores: one array per window, with one number per scored token."""

    windows: list[tuple[int, Window]] = field(default_factory=list)  # with the number of the document
    nll: list[Array] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)  # empty without a reference
    contexts: list[NDArray[np.int64]] = field(default_factory=list)  # positions before each scored token
    tokens_per_s: float = 0.0
    reference_tokens_per_s: float = 0.0

    @property
    def counts(self) -> Array:
        """Scored tokens of each window."""
        return np.array([len(part) for part in self.nll], np.float64)


def score(
    candidate: Engine,
    reference: Engine | None,
    corpus: Corpus,
    windowing: Windowing,
    on_window: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every window with both engines in turn; each needs a free slot and `windowing.length` positions.

    Raises:
        MisuseError: the window exceeds a capacity, or the two models have vocabularies of different sizes.
        EngineError: an engine failed, or gave NaN or infinity.
    """
    _check(candidate, reference, windowing)
    windows = list(corpus.windows(windowing))
    scores = Scores()
    reading = Reading(candidate, candidate.cache.admit())
    other = None if reference is None else Reading(reference, reference.cache.admit())
    try:
        for done, (number, window) in enumerate(windows):
            if on_window:
                on_window(done, len(windows))
            _score_window(scores, reading, other, corpus.documents[number], window)
            scores.windows.append((number, window))
    finally:
        for used in filter(None, (reading, other)):
            used.engine.cache.release(used.slot)
    scores.tokens_per_s = reading.tokens_per_s
    scores.reference_tokens_per_s = other.tokens_per_s if other else 0.0
    return scores


def _score_window(
    scores: Scores, candidate: Reading, reference: Reading | None, document: Document, window: Window
) -> None:
    fed, targets = document.fed(window), document.targets(window)
    at = 0
    found: list[Array] = []
    compared: list[Comparison] = []
    if reference is None:
        for logits in candidate.logits(fed, len(targets)):
            found.append(nll(logits, targets[at : at + len(logits)]))
            at += len(logits)
    else:
        pairs = zip(reference.logits(fed, len(targets)), candidate.logits(fed, len(targets)), strict=True)
        for expected, logits in pairs:
            compared.append(compare(expected, logits, targets[at : at + len(logits)]))
            at += len(logits)
        comparison = Comparison(*(np.concatenate(parts) for parts in zip(*compared, strict=True)))
        scores.comparisons.append(comparison)
        found = [comparison.candidate_nll]
    scores.nll.append(np.concatenate(found))
    scores.contexts.append(np.arange(len(targets)) + len(fed) - len(targets) + 1)


def _check(candidate: Engine, reference: Engine | None, windowing: Windowing) -> None:
    for engine in filter(None, (candidate, reference)):
        if windowing.length > engine.cache.capacity:
            raise MisuseError(
                f"A window has {windowing.length:,} positions, but the engine holds {engine.cache.capacity:,}; "
                "lower --window or raise --max-length."
            )
    if reference is not None and reference.vocab_size != candidate.vocab_size:
        raise MisuseError(
            f"The model gives {candidate.vocab_size:,} logits a token and the reference {reference.vocab_size:,}; "
            "only models of one vocabulary can be compared."
        )
