"""Extractive question answering: a bundle becomes a QuestionAnswerer.

A context that is longer than a window is read in windows that overlap. The span is chosen as in transformers'
QuestionAnsweringPipeline (version 4): in each window the probabilities of starts and of ends are taken over the
context's tokens and the first token, which stands for no answer; the best product over all windows wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.errors import MisuseError
from piston.runtime.encoder import CHUNK, EncoderModel, check_input, open_encoder
from piston.runtime.scores import softmax

if TYPE_CHECKING:
    from tokenizers import Encoding

Array = NDArray[np.float32]
WINDOW, STRIDE = 384, 128  # tokens: transformers' max_seq_len and doc_stride
ANSWER_LEN = 15  # tokens of an answer at most


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of the context: `text` is its characters from `start` up to `end`.

    `no_answer_score` is the probability that the context has no answer: the lowest of its windows. The empty answer
    has it as its score.
    """

    text: str
    start: int
    end: int
    score: float
    no_answer_score: float


class QuestionAnswerer(EncoderModel):
    """A loaded bundle that finds answers in texts; see EncoderModel."""

    TASK = "question-answering"

    @checked_arguments
    def answer(
        self,
        question: str,
        context: str,
        *,
        allow_no_answer: bool = False,
        max_answer_len: int = ANSWER_LEN,
        window: int | None = None,
        stride: int | None = None,
    ) -> Answer:
        """The best answer that the context has to the question.

        Args:
            question: not empty.
            context: not empty; of any length.
            allow_no_answer: return the empty answer where it is more probable than every span, for models that were
                trained on questions without an answer (SQuAD 2.0).
            max_answer_len: tokens of an answer at most.
            window: tokens of question and context that are read at once, by default 384 or what the model reads.
            stride: tokens by which windows overlap, by default 128 or half a window.

        Raises:
            MisuseError: an argument is of another type, a text is empty or is no Unicode, a number is below 1, or the
                question fills the window.
            EngineError: the backend fails.
        """
        return self.answer_all(
            [(question, context)],
            allow_no_answer=allow_no_answer,
            max_answer_len=max_answer_len,
            window=window,
            stride=stride,
        )[0]

    @checked_arguments
    def answer_all(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        allow_no_answer: bool = False,
        max_answer_len: int = ANSWER_LEN,
        window: int | None = None,
        stride: int | None = None,
    ) -> list[Answer]:
        """The answer to each question with its context; arguments and errors as of `answer`."""
        check_answer_len(max_answer_len)
        answers: list[Answer] = []
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            rows: list[tuple[int, Encoding]] = []
            for index, pair in enumerate(chunk):
                name = "" if len(pairs) == 1 else f" {start + index}"
                rows += [(index, row) for row in self.rows_of(*pair, name=name, window=window, stride=stride)]
            best: list[Answer | None] = [None] * len(chunk)
            for place, logits in self.outputs([row.ids for _, row in rows], [row.type_ids for _, row in rows]):
                index, row = rows[place]
                best[index] = _better(best[index], _best(chunk[index][1], row, logits, max_answer_len))
            answers += [_decided(answer, allow_no_answer=allow_no_answer) for answer in best]
        return answers

    def rows_of(
        self, question: str, context: str, *, name: str = "", window: int | None = None, stride: int | None = None
    ) -> "list[Encoding]":
        """The windows of a question with its context; `name` follows "question" in errors, which are as of `answer`."""
        length = min(WINDOW, self.max_length) if window is None else window
        if not 1 <= length <= self.max_length:
            raise MisuseError(f"window is {length}; it must be from 1 to {self.max_length} tokens.")
        overlap = min(STRIDE, length // 2) if stride is None else stride
        check_input(question, f"The question{name}")
        check_input(context, f"The context{name}")
        return self.windows(question, context, what=f"The question{name}", length=length, stride=overlap)

    def answer_of(
        self,
        context: str,
        rows: "Sequence[Encoding]",
        outputs: Sequence[Array],
        *,
        allow_no_answer: bool = False,
        max_answer_len: int = ANSWER_LEN,
    ) -> Answer:
        """What `answer` gives, from the outputs [tokens, 2] of all windows."""
        check_answer_len(max_answer_len)
        best: Answer | None = None
        for row, logits in zip(rows, outputs, strict=True):
            best = _better(best, _best(context, row, logits, max_answer_len))
        return _decided(best, allow_no_answer=allow_no_answer)


def check_answer_len(max_answer_len: int) -> None:
    """Raise MisuseError below 1."""
    if max_answer_len < 1:
        raise MisuseError(f"max_answer_len is {max_answer_len}; it must be 1 or more.")


def _best(context: str, row: "Encoding", logits: Array, max_answer_len: int) -> Answer:
    """The best span of one window, from logits [tokens, 2]."""
    can_answer = np.array([sequence == 1 for sequence in row.sequence_ids])
    counts = can_answer.copy()
    counts[0] = True  # stands for no answer
    start, end = softmax(np.where(counts[:, None], logits, np.float32(-1e4)).T)
    no_answer = float(start[0] * end[0])
    places = np.flatnonzero(can_answer)
    if not places.size:
        return Answer("", 0, 0, 0.0, no_answer)
    starts, ends = start[places], end[places]
    products = np.tril(np.triu(np.outer(starts, ends)), min(max_answer_len, places.size) - 1)
    first, last = np.unravel_index(int(products.argmax()), products.shape)
    begin, finish = _characters(row, int(places[first]), int(places[last]))
    return Answer(context[begin:finish], begin, finish, float(products[first, last]), no_answer)


def _characters(row: "Encoding", first: int, last: int) -> tuple[int, int]:
    """Where the words of two tokens begin and end; the tokens themselves, of tokenizers without words."""
    words = [row.token_to_word(first), row.token_to_word(last)]
    spans = [None if word is None else row.word_to_chars(word, 1) for word in words]
    begin, end = (
        span if span is not None else row.offsets[token] for span, token in zip(spans, (first, last), strict=True)
    )
    return begin[0], end[1]


def _better(known: Answer | None, found: Answer) -> Answer:
    if known is None:
        return found
    best = found if found.score > known.score else known
    no_answer = min(known.no_answer_score, found.no_answer_score)
    return Answer(best.text, best.start, best.end, best.score, no_answer)


def _decided(best: Answer | None, *, allow_no_answer: bool) -> Answer:
    assert best is not None
    if allow_no_answer and best.no_answer_score >= best.score:
        return Answer("", 0, 0, best.no_answer_score, best.no_answer_score)
    return best


MODEL = QuestionAnswerer
open_model = partial(open_encoder, QuestionAnswerer)
