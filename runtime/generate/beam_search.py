"""Beam search: the likeliest answers found among `num_beams` at a time, as transformers' generate finds them (5.23).

Each beam is a row of the engine. Beams of one request share its prompt, and of an encoder-decoder its source: both are
computed once and copied. After a step, a beam that goes on alone keeps its slot; where several go on from one, the
others take slots of beams that ended, and only those positions are copied that differ from what these slots hold.

Scores are sums of log-probabilities over `length ** length_penalty` (Wu et al. 2016, arXiv:1609.08144, without its
constants), in float32.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import EngineError
from piston.runtime.backends.engine import Engine, Logits
from piston.runtime.generate.request import Request
from piston.runtime.sampling.beam_params import BeamParams

BLOCK = 64  # values of a group of which the largest is taken first
EXCLUDED = np.float32(-1e9)  # added to the score of what may not be chosen, as in transformers


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished answer: its tokens, the end token included, and its score."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(slots=True, eq=False)
class _Beam:
    """A running answer; `slot` holds the states of the prompt and of all its tokens but the last."""

    token_ids: list[int]
    score: np.float32
    slot: int


@dataclass(slots=True, eq=False)
class Search:
    """The search for one request's answers. A scheduler runs the engine.

    Args:
        request: with its `beams`.
        slots: one for each beam; the first holds the prompt. Others are empty, and may be added until the first step.
        is_read: whether the first slot holds the whole prompt; else the next step reads its last token.
    """

    request: Request
    slots: list[int]
    is_read: bool = True
    params: BeamParams = field(init=False)
    beams: list[_Beam] = field(init=False)
    finished: list[Hypothesis] = field(default_factory=list)  # at most num_beams, the best first
    held: dict[int, list[int]] = field(init=False)  # by slot: tokens whose states it holds, if it does
    is_done: bool = False

    def __post_init__(self) -> None:
        """Begin at the end of the prompt."""
        assert self.request.beams is not None
        self.params, first = self.request.beams, self.slots[0]
        prompt = self.request.prompt_ids
        self.held = {first: list(prompt if self.is_read else prompt[:-1])}
        # All begin alike: beams but the first are excluded, so that not every beam takes the same token.
        scores = [np.float32(0), *[EXCLUDED] * (self.params.num_beams - 1)]
        self.beams = [_Beam([], score, first) for score in scores]

    @property
    def found(self) -> list[Hypothesis]:
        """The answers to return, best first."""
        return self.finished[: self.params.num_return_sequences]

    def advance(self, engine: Engine, logits: Mapping[int, Logits]) -> None:
        """Choose the next beams by the logits of each slot, float32 [vocab], and bring their states into place."""
        size, sampler = self.params.num_beams, self.request.sampler
        vocab = logits[self.beams[0].slot].size
        totals = np.empty(len(self.beams) * vocab, np.float32)
        for beam, row in zip(self.beams, totals.reshape(-1, vocab), strict=True):
            np.add(beam.score, self._processed(logits[beam.slot], beam.token_ids), out=row)
        count = min(max(2, 1 + len(sampler.end_ids)) * size, totals.size)
        best = _largest(totals, count)
        length = len(self.beams[0].token_ids) + 1
        is_last = length >= sampler.sampling.max_tokens
        parents, tokens = best // vocab, best % vocab
        ends = np.array([is_last or int(token) in sampler.end_ids for token in tokens])
        running = totals[best] + ends.astype(np.float32) * EXCLUDED
        chosen = _largest(running, size)
        self._finish([(self.beams[p], int(t), totals[i]) for p, t, i in zip(parents, tokens, best, strict=True)], ends)
        places = [(self.beams[parents[index]], int(tokens[index]), running[index]) for index in chosen]
        self.is_done = not self._may_go_on(length, float(running[chosen[0]])) or bool(ends.all())
        if not self.is_done:
            self.beams = self._placed(engine, places)

    def _processed(self, logits: Logits, token_ids: list[int]) -> Logits:
        """Log-probabilities of the next token, changed as the sampling options say, float32 [vocab]."""
        highest = logits.max()
        if not np.isfinite(highest):
            raise EngineError(
                f"The highest of {logits.size:,} logits is {highest}, so no token can be picked: the engine's "
                "arithmetic failed; use a bundle of higher precision."
            )
        log_probs = logits - highest
        log_probs -= np.log(np.exp(log_probs).sum(dtype=np.float32))
        return self.request.sampler.processed(log_probs, token_ids)

    def _finish(self, candidates: list[tuple[_Beam, int, np.float32]], ends: NDArray[np.bool_]) -> None:
        """Take over answers that ended among the best `num_beams` candidates, if they are better than earlier ones."""
        size = self.params.num_beams
        if self.params.early_stopping is True and len(self.finished) == size:
            return
        for (beam, token, total), is_end in zip(candidates[:size], ends, strict=False):
            if is_end:
                token_ids = (*beam.token_ids, token)
                score = float(total / np.float32(len(token_ids) ** self.params.length_penalty))
                self.finished.append(Hypothesis(token_ids, score))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable: earlier ones stay in front of equals
        del self.finished[size:]

    def _may_go_on(self, length: int, best_running: float) -> bool:
        """Whether a running answer may still become better than the worst of those that ended."""
        params = self.params
        if len(self.finished) < params.num_beams:
            return True
        if params.early_stopping is True:
            return False
        if params.early_stopping == "never" and params.length_penalty > 0:
            length = self.request.sampler.sampling.max_tokens
        return bool(best_running / length**params.length_penalty > self.finished[-1].score)

    def _placed(self, engine: Engine, chosen: list[tuple[_Beam, int, np.float32]]) -> list[_Beam]:
        """The next beams: of several that go on from one slot, the first keeps it and others get copies."""
        free = [slot for slot in self.slots if slot not in {beam.slot for beam, _, _ in chosen}]
        kept: set[int] = set()
        beams = []
        for beam, token, score in chosen:
            slot = beam.slot
            if slot in kept:
                slot = self._copied(engine, beam.slot, free)
            kept.add(beam.slot)
            beams.append(_Beam([*beam.token_ids, token], score, slot))
        return beams

    def _copied(self, engine: Engine, source: int, free: list[int]) -> int:
        """Copy a slot to the free one that holds most of the same tokens, from the first that differs on."""
        tokens = self.held[source]
        shared = {slot: _num_shared(self.held.get(slot, ()), tokens) for slot in free}
        goal = max(free, key=shared.__getitem__)
        free.remove(goal)
        engine.cache.copy(source, goal, len(tokens), start=shared[goal])
        self.held[goal] = list(tokens)
        return goal

    def next_tokens(self) -> dict[int, int]:
        """The last token of each beam, which the next step reads, by slot."""
        tokens = {beam.slot: [*self.request.prompt_ids, *beam.token_ids][-1] for beam in self.beams}
        for slot, token in tokens.items():
            self.held[slot].append(token)
        return tokens


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, largest first, equals by their index."""
    if (width := values.size // BLOCK) >= count:
        # At least `count` values reach the count-th largest of the groups' largest ones, and few others do. It would
        # take ten times as long to partition all values.
        groups = values[: width * BLOCK].reshape(BLOCK, width).max(axis=0)
        found = np.flatnonzero(values >= np.partition(groups, width - count)[width - count])
    else:
        found = np.arange(values.size)
    return found[np.argsort(-values[found], kind="stable")][:count]


def _num_shared(one: Iterable[int], other: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
