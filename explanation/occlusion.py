"""Leave each word out in turn, and see by how much the scores fall."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.explanation.result import Attribution, MarkedText, Word

if TYPE_CHECKING:
    from piston.runtime.text.tokenizer import Tokenizer

Span = tuple[int, int]
MASKS = ("[MASK]", "<mask>")  # as tokenizers of encoders spell them
MOST_WORDS = 512  # each costs a run of the model
Scores = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """The inputs with one word left out: `name` says of which input, `span` its characters."""

    texts: Mapping[str, str]
    name: str
    span: Span
    replacement: str

    def moved(self, name: str, place: int) -> int:
        """Where a character of an input is now; one that was left out is at the beginning of what replaced it."""
        start, end = self.span
        if name != self.name or place <= start:
            return place
        return place + len(self.replacement) - (end - start) if place >= end else start


def words_of(text: str, tokenizer: "Tokenizer") -> list[Span]:
    """The words of a text as the tokenizer splits it, without the spaces around them; its tokens where it does not.

    Raises:
        MisuseError: there are too many.
    """
    encoding = tokenizer.encoding(text, add_special_tokens=False)
    spans: dict[int, Span] = {}
    for token, word in enumerate(encoding.word_ids):
        if word is None:
            continue
        start, end = encoding.offsets[token]
        known = spans.get(word, (start, end))
        spans[word] = (min(known[0], start), max(known[1], end))
    found = _trimmed(text, spans.values())
    if len(found) < 2:  # noqa: PLR2004 - of a tokenizer that does not split texts into words
        found = _trimmed(text, encoding.offsets)
    if len(found) > MOST_WORDS:
        raise MisuseError(f"The text has {len(found):,} words; up to {MOST_WORDS} can be explained. Shorten it.")
    return found


def replacement_of(stated: str | None, tokenizer: "Tokenizer") -> str:
    """What is written in place of a word."""
    if stated is not None:
        return stated
    return next((mask for mask in MASKS if tokenizer.id_of(mask) is not None), "")


def variants_of(texts: Mapping[str, str], spans: Mapping[str, Sequence[Span]], replacement: str) -> list[Variant]:
    """The inputs with one word of one of them left out, in the order of the words."""
    found = []
    for name, own in spans.items():
        for start, end in own:
            changed = f"{texts[name][:start]}{replacement}{texts[name][end:]}"
            if not changed.strip():
                raise MisuseError(
                    f"--{name.replace('_', '-')} {texts[name]!r:.40} is one word, and nothing is left without it; give "
                    "--replacement TEXT to write in its place."
                )
            found.append(Variant({**texts, name: changed}, name, (start, end), replacement))
    return found


def attributions_of(
    names: Sequence[str],
    texts: Mapping[str, str],
    words: "Mapping[str, Tokenizer]",
    replacement: str,
    score: Callable[[Sequence[Mapping[str, str]], Sequence[Variant]], Scores],
) -> tuple[Attribution, ...]:
    """One attribution for each named score.

    Args:
        names: of the scores.
        texts: the inputs by name.
        words: the tokenizer that splits each input that is explained.
        replacement: what is written in place of a word.
        score: float64 [inputs, scores] of the whole input and then of each variant, which come second.
    """
    spans = {name: words_of(texts[name], tokenizer) for name, tokenizer in words.items()}
    variants = variants_of(texts, spans, replacement)
    scores = score([texts, *(variant.texts for variant in variants)], variants)
    found = []
    for column, name in enumerate(names):
        effects = iter((scores[0, column] - scores[1:, column]).tolist())
        marked = tuple(
            MarkedText(part, texts[part], tuple(Word(*span, next(effects)) for span in own))
            for part, own in spans.items()
        )
        found.append(Attribution(name, float(scores[0, column]), marked))
    return tuple(found)


def _trimmed(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans without the spaces that some tokenizers count to a word; empty ones are left out."""
    found = []
    for start, end in spans:
        part = text[start:end]
        if part.strip():
            left, right = len(part) - len(part.lstrip()), len(part) - len(part.rstrip())
            found.append((start + left, end - right))
    return found
