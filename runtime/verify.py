"""Checks an engine against golden outputs. Its steps get the expected tokens, so every position is compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from piston.core.bundle.golden import Golden, GoldenAnswer
from piston.core.bundle.manifest import Manifest
from piston.core.errors import BundleError
from piston.runtime.backends.engine import Engine, Logits, Source, encode
from piston.runtime.text.tokenizer import Tokenizer
from piston.runtime.verify_outputs import OutputMismatch, OutputVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first token that an engine, or the tokenizer, gave differently; `margin` is its own, in logits."""

    what: str  # "tokenizer" or "engine"
    prompt: str
    position: int  # of the answer, or of the prompt for a tokenizer; from 0
    expected_id: int | None  # None: one of the two ended here
    got_id: int | None
    expected_text: str
    got_text: str
    expected_margin: float = 0.0
    margin: float = 0.0

    def __str__(self) -> str:
        where = f"token {self.position} of the answer to" if self.what == "engine" else f"token {self.position} of"
        margins = f" (margins {self.expected_margin:.3g} and {self.margin:.3g})" if self.what == "engine" else ""
        return (
            f"the {self.what} differs at {where} {self.prompt!r:.60}: expected {self.expected_id} "
            f"{self.expected_text!r}, got {self.got_id} {self.got_text!r}{margins}"
        )


@dataclass(slots=True)
class Verdict:
    """The result; passed without a mismatch."""

    num_prompts: int
    num_tokens: int = 0
    num_decided: int = 0
    given: str = "prompts"  # what the answers are to
    mismatches: list[Mismatch | OutputMismatch] = field(default_factory=list)  # the first of each prompt
    encoded: OutputVerdict | None = None  # on the outputs of a speech model's encoder; its mismatches are among these

    @property
    def is_passed(self) -> bool:
        """Whether every compared token was the expected one, and there was at least one."""
        return not self.mismatches and self.num_decided > 0


SourceOf = Callable[[GoldenAnswer], Source | None]


def source_of(answer: GoldenAnswer, directory: Path, manifest: Manifest) -> Source | None:
    """What the encoder of a bundle in a directory reads for an answer; None where there is no encoder.

    Raises:
        MisuseError: the file of a sound cannot be read.
    """
    if answer.audio:
        from piston.runtime.golden_sounds import sound_source

        return sound_source(directory / answer.audio, manifest)
    return Source.of_text(answer.prompt_ids) if answer.start_ids else None


def verify(
    engine: Engine,
    tokenizer: Tokenizer,
    expected: Golden,
    threshold: float,
    sources: SourceOf = lambda _: None,
    *,
    tolerance: float = 0.0,
) -> Verdict:
    """Encode the prompts, then continue them with the engine, as many together as it has slots.

    Args:
        engine: with any number of slots.
        tokenizer: of the bundle.
        expected: the golden answers.
        threshold: the smallest margin of a token that is compared.
        sources: what the encoder of an encoder-decoder reads for each answer.
        tolerance: of the encoder's outputs for sounds.

    Raises:
        BundleError: an answer does not fit the engine, or its ids are outside the vocabulary.
        EngineError: the engine failed.
    """
    verdict = Verdict(len(expected.answers))
    for answer in expected.answers:
        _check_fits(engine, answer)
        if answer.audio:
            verdict.given = "sounds"
        else:
            _compare_prompt(tokenizer, answer, verdict)
    if expected.examples:
        verdict.encoded = _compare_encoded(engine, expected, sources, tolerance)
        verdict.mismatches += verdict.encoded.mismatches
    for start in range(0, len(expected.answers), engine.cache.num_slots):
        group = expected.answers[start : start + engine.cache.num_slots]
        _Group(engine, tokenizer, verdict, threshold, sources).run(group)
    return verdict


def read(
    engine: Engine, slot: int, answer: GoldenAnswer, source: Source | None, token_ids: Sequence[int] = ()
) -> Logits:
    """Logits of the last token of the prompt, and of these tokens behind it, [1 + tokens, vocab]."""
    prompt = answer.start_ids or answer.prompt_ids
    if source is not None:
        encode(engine, slot, source)
    return engine.prefill(slot, [*prompt, *token_ids], num_logits=1 + len(token_ids))


def _check_fits(engine: Engine, answer: GoldenAnswer) -> None:
    needed = max(len(answer.prompt_ids), len(answer.start_ids)) + len(answer.token_ids)
    largest = max(*answer.prompt_ids, *answer.token_ids)
    if needed > engine.cache.capacity or largest >= engine.vocab_size:
        raise BundleError(
            f"The golden answers need {needed} positions and ids up to {largest}; the engine has "
            f"{engine.cache.capacity} positions and {engine.vocab_size} ids. Raise --max-length, or build again."
        )


def _compare_prompt(tokenizer: Tokenizer, answer: GoldenAnswer, verdict: Verdict) -> None:
    got, expected = tokenizer.encode(answer.prompt), list(answer.prompt_ids)
    if got[: len(expected)] == expected:  # a prompt longer than the engine was truncated at its end
        return
    position = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), len(got))
    wanted, found = expected[position], got[position] if position < len(got) else None
    texts = [tokenizer.text_of(item) if item is not None else "" for item in (wanted, found)]
    verdict.mismatches.append(
        Mismatch(
            what="tokenizer",
            prompt=answer.prompt,
            position=position,
            expected_id=wanted,
            got_id=found,
            expected_text=texts[0],
            got_text=texts[1],
        )
    )


def _compare_encoded(engine: Engine, expected: Golden, sources: SourceOf, tolerance: float) -> OutputVerdict:
    """The outputs of the encoder for each sound, up to the first that is too far from the recorded one."""
    from piston.runtime.golden_sounds import encoded

    verdict = OutputVerdict(len(expected.answers), tolerance, given="sounds")
    for answer, example in zip(expected.answers, expected.examples, strict=True):
        source = sources(answer)
        assert source is not None
        (found,) = encoded(engine, [source])
        if found.keys() != example.values.keys():
            names = ", ".join(example.values)
            raise BundleError(f"The golden outputs are of {names}, not of the encoder; build it again.")
        for name, values in example.values.items():
            if not verdict.compare(f"{answer.prompt}, {name} of the encoder", found[name], np.array(values)):
                break
    return verdict


@dataclass(slots=True)
class _Group:
    """Answers that are stepped together."""

    engine: Engine
    tokenizer: Tokenizer
    verdict: Verdict
    threshold: float
    sources: SourceOf
    parted: set[int] = field(default_factory=set)

    def run(self, answers: Sequence[GoldenAnswer]) -> None:
        of_slot = {self.engine.cache.admit(): answer for answer in answers}
        try:
            logits = {
                slot: read(self.engine, slot, answer, self.sources(answer))[-1].copy()
                for slot, answer in of_slot.items()
            }
            for position in range(max(len(answer.token_ids) for answer in answers)):
                going = {slot: answer for slot, answer in of_slot.items() if position < len(answer.token_ids)}
                for slot, answer in going.items():
                    self._judge(slot, answer, position, logits[slot])
                rest = {slot for slot, answer in going.items() if position + 1 < len(answer.token_ids)}
                if rest:
                    logits = self.engine.step({slot: of_slot[slot].token_ids[position] for slot in sorted(rest)})
        finally:
            for slot in of_slot:
                self.engine.cache.release(slot)

    def _judge(self, slot: int, answer: GoldenAnswer, position: int, logits: Logits) -> None:
        self.verdict.num_tokens += 1
        if not answer.margins[position] > self.threshold:
            return
        self.verdict.num_decided += 1
        wanted, got = answer.token_ids[position], int(np.argmax(logits))
        is_right = got == wanted and bool(np.isfinite(logits).all())
        if is_right or slot in self.parted:
            return
        self.parted.add(slot)
        self.verdict.mismatches.append(
            Mismatch(
                what="engine",
                prompt=answer.prompt,
                position=position,
                expected_id=wanted,
                got_id=got,
                expected_text=self.tokenizer.text_of(wanted),
                got_text=self.tokenizer.text_of(got),
                expected_margin=answer.margins[position],
                margin=margin_of(logits, got),
            )
        )


def margin_of(logits: Logits, token_id: int) -> float:
    """The lead of a token's logit over all others; float32 [vocab]."""
    others = np.delete(logits, token_id)
    return float(logits[token_id] - others.max()) if others.size else float("inf")
