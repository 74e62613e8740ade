"""Question answering: what each word does to the probabilities of where the answer starts and ends."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from piston.core.errors import MisuseError
from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.opened import Opened
from piston.explanation.result import Array, Asked, Explanation
from piston.runtime.scores import softmax
from piston.runtime.tasks.question_answering import QuestionAnswerer

if TYPE_CHECKING:
    from tokenizers import Encoding

TAKES = {"question": True, "context": True}


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the best answer: its first and its last token among all of the context, as transformers' pipeline has them.

    Raises:
        MisuseError: the context takes several windows.
    """
    model: QuestionAnswerer = opened.model
    question, context = asked.texts["question"], asked.texts["context"]
    row = _row(model, question, context)
    answer = model.answer(question, context, window=model.max_length)
    start, end = (answer.start, answer.end) if asked.like is None else asked.like.fixed["span"]

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        rows = [_row(model, each["question"], each["context"]) for each in texts]
        spans = [(start, end), *((each.moved("context", start), each.moved("context", end)) for each in variants)]
        outputs = model.run(rows)
        return np.array([_ends(*each) for each in zip(rows, outputs, spans, strict=True)], np.float64)

    attributions = attributions_of(
        ["probability of the start", "probability of the end"],
        asked.texts,
        dict.fromkeys(("question", "context"), model.tokenizer),
        replacement_of(asked.replacement, model.tokenizer),
        score,
    )
    return opened.explanation(
        f"{answer.text!r} ({answer.score:.4g})",
        [("answer", answer.score), ("no answer", answer.no_answer_score)],
        attributions=attributions,
        fixed={"span": (start, end)},
        **opened.attention_of(row, asked),
    )


def _row(model: QuestionAnswerer, question: str, context: str) -> "Encoding":
    rows = model.rows_of(question, context, window=model.max_length)
    if len(rows) > 1:
        raise MisuseError(
            f"Question and context take {len(rows)} windows of {model.max_length} tokens; give the part of the context "
            "that has the answer."
        )
    return rows[0]


def _ends(row: "Encoding", logits: Array, span: tuple[int, int]) -> tuple[float, float]:
    """The probabilities that the answer starts and ends at these characters of the context."""
    is_context = np.array([sequence == 1 for sequence in row.sequence_ids])
    counts = is_context.copy()
    counts[0] = True  # stands for no answer
    probabilities = softmax(np.where(counts[:, None], logits, np.float32(-1e4)).T)
    places = np.flatnonzero(is_context).tolist()
    if not places:
        return 0.0, 0.0
    start, end = span
    first = next((place for place in places if row.offsets[place][1] > start), places[-1])
    last = next((place for place in reversed(places) if row.offsets[place][0] < end), places[0])
    return float(probabilities[0, first]), float(probabilities[1, last])
