"""Token classification: a bundle becomes a TokenClassifier.

Tokens become words and words become spans as in transformers' TokenClassificationPipeline, whose aggregation
strategies have the same names here.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.errors import MisuseError
from piston.runtime.encoder import CHUNK, EncoderModel, labels_in, open_encoder
from piston.runtime.scores import softmax

if TYPE_CHECKING:
    from tokenizers import Encoding

Aggregation = Literal["none", "simple", "first", "average", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text with its label: `text` is the characters from `start` up to `end` of the whole text."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class _Token:
    start: int
    end: int
    scores: Array  # [labels]
    is_subword: bool  # it goes on with the word of the token before it


@dataclass(frozen=True, slots=True)
class _Tagged:
    """A token or a word with its best label, which may begin with B- or I-."""

    label: str
    start: int
    end: int
    score: float


class TokenClassifier(EncoderModel):
    """A loaded bundle that labels parts of texts; see EncoderModel."""

    TASK = "token-classification"

    def __init__(self, *parts: Any, **sizes: Any) -> None:
        super().__init__(*parts, **sizes)
        self.labels = labels_in(self.manifest, self.width)  # in the order of the logits
        # The word that a token belongs to shows only in tokenizers that mark what goes on with a word.
        self._marks_subwords = bool(self.tokenizer.continuing_subword_prefix)
        self._unknown_id = self.tokenizer.id_of(self.manifest.tokenizer.special_tokens.get("unk_token", ""))

    @checked_arguments
    def tag(
        self,
        texts: Sequence[str],
        *,
        aggregation: Aggregation = "simple",
        ignore_labels: Sequence[str] = ("O",),
        truncate: bool = False,
        stride: int | None = None,
    ) -> list[list[Span]]:
        """The labelled parts of each text, in its order.

        Args:
            texts: none of them empty.
            aggregation: "none" gives a span for each token; "simple" joins neighbours of one label; "first", "average"
                and "max" also give all tokens of a word one label: that of its first token, that of the mean of its
                tokens' probabilities, or that of its most certain token.
            ignore_labels: labels that are left out.
            truncate: cut texts of more than `max_length` tokens at their end; without it they are refused.
            stride: read such texts in windows instead, which overlap by so many tokens.

        Raises:
            MisuseError: an argument is of another type, a text is empty or is no Unicode, or the stride does not fit.
            PromptTooLongError: a text is too long.
            EngineError: the backend fails.
        """
        if stride is not None and (truncate or aggregation == "none"):
            other = "truncate" if truncate else "aggregation 'none'"
            raise MisuseError(f"stride reads a text in windows, and {other} does not go with it; leave one out.")
        found: list[list[Span]] = []
        for start in range(0, len(texts), CHUNK):
            found += self._tag(texts[start : start + CHUNK], start, aggregation, set(ignore_labels), truncate, stride)
        return found

    def _tag(
        self,
        texts: Sequence[str],
        offset: int,
        aggregation: Aggregation,
        ignored: set[str],
        truncate: bool,  # noqa: FBT001
        stride: int | None,
    ) -> list[list[Span]]:
        rows: list[tuple[int, Encoding]] = []
        for index, text in enumerate(texts):
            what = f"Text {offset + index}"
            if stride is None:
                rows.append((index, self.encoding(text, what=what, max_tokens=self.max_length if truncate else None)))
            else:
                windows = self.windows(text, what=what, length=self.max_length, stride=stride)
                rows += [(index, window) for window in windows]
        spans: list[list[Span]] = [[] for _ in rows]
        for place, logits in self.outputs([row.ids for _, row in rows], [row.type_ids for _, row in rows]):
            index, row = rows[place]
            spans[place] = self.spans(texts[index], row, logits, aggregation, ignored)
        results: list[list[Span]] = []
        for _, group in groupby(zip(rows, spans, strict=True), key=lambda item: item[0][0]):
            results.append(merged([found for _, found in group]))
        return results

    def spans(
        self, text: str, row: "Encoding", logits: Array, aggregation: Aggregation, ignored: Collection[str]
    ) -> list[Span]:
        """What `tag` gives of one row of the text, from its logits [tokens, labels]."""
        tagged = self._tagged(self._tokens(text, row, logits), aggregation)
        parts = tagged if aggregation == "none" else _joined(tagged)
        return [_span(text, part) for part in parts if part.label not in ignored]

    def _tokens(self, text: str, row: "Encoding", logits: Array) -> Iterator[_Token]:
        tokens, special = row.tokens, row.special_tokens_mask
        for place, ((start, end), scores) in enumerate(zip(row.offsets, softmax(logits), strict=True)):
            if special[place]:
                continue
            if self._marks_subwords:
                is_subword = len(tokens[place]) != end - start
            else:
                is_subword = start > 0 and " " not in text[start - 1 : start + 1]
            if row.ids[place] == self._unknown_id:
                is_subword = False
            yield _Token(start, end, scores, is_subword)

    def _tagged(self, tokens: Iterable[_Token], aggregation: Aggregation) -> list[_Tagged]:
        """Tokens with their labels; words, where the aggregation is by words."""
        if aggregation in {"none", "simple"}:
            return [self._best(token.start, token.end, token.scores) for token in tokens]
        words: list[list[_Token]] = []
        for token in tokens:
            if words and token.is_subword:
                words[-1].append(token)
            else:
                words.append([token])
        return [self._best(word[0].start, word[-1].end, _word_scores(word, aggregation)) for word in words]

    def _best(self, start: int, end: int, scores: Array) -> _Tagged:
        best = int(scores.argmax())
        return _Tagged(self.labels[best], start, end, float(scores[best]))


def _word_scores(word: Sequence[_Token], aggregation: Aggregation) -> Array:
    if aggregation == "first":
        return word[0].scores
    if aggregation == "max":
        return max(word, key=lambda token: float(token.scores.max())).scores
    return np.asarray(np.stack([token.scores for token in word]).mean(axis=0), np.float32)


def _joined(tagged: Iterable[_Tagged]) -> list[_Tagged]:
    """Neighbours of one label as one span, without B- and I-; a label that begins with B- begins a span."""
    groups: list[list[_Tagged]] = []
    without = label_without_prefix
    for item in tagged:
        if groups and not item.label.startswith("B-") and without(item.label) == without(groups[-1][-1].label):
            groups[-1].append(item)
        else:
            groups.append([item])
    return [
        replace(
            group[0],
            label=group[0].label.split("-", 1)[-1],
            end=group[-1].end,
            score=float(np.mean([item.score for item in group])),
        )
        for group in groups
    ]


def label_without_prefix(label: str) -> str:
    """The label without B- or I-, which say whether a span begins or goes on."""
    return label[2:] if label[:2] in {"B-", "I-"} else label


def _span(text: str, part: _Tagged) -> Span:
    return Span(part.label, text[part.start : part.end], part.start, part.end, part.score)


def merged(windows: Sequence[list[Span]]) -> list[Span]:
    """Spans of overlapping windows: of those that overlap the longest counts, of equal ones the most certain."""
    if len(windows) == 1:
        return windows[0]
    found: list[Span] = []
    for span in sorted((span for spans in windows for span in spans), key=lambda span: span.start):
        if found and span.start < found[-1].end:
            last = found[-1]
            if (span.end - span.start, span.score) > (last.end - last.start, last.score):
                found[-1] = span
        else:
            found.append(span)
    return found


MODEL = TokenClassifier
open_model = partial(open_encoder, TokenClassifier)
