"""Question answering: how far the logits of starts and ends move, and exact match and F1 on questions with answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from piston.evaluation.encoders import AGREEMENT, DISTANCE, KL, Array, described, logits_moved
from piston.evaluation.labelled import read_answered
from piston.evaluation.quality import EXACT_MATCH, F1, answer_scores
from piston.evaluation.tasks import Comparison
from piston.runtime.tasks.question_answering import QuestionAnswerer

MOVED = {metric.name: metric for metric in (DISTANCE, AGREEMENT, KL)}
METRICS = MOVED | {metric.name: metric for metric in (EXACT_MATCH, F1)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def moved(found: Sequence[Array], wanted: Sequence[Array]) -> Comparison:
    """How far outputs, one for each text, are from the float model's."""
    pairs = [*zip(found, wanted, strict=True)]
    # A start and an end are chosen among the tokens of a row.
    parts = [logits_moved([left.T], [right.T]) for left, right in pairs]
    values = {name: float(np.mean([part[name] for part in parts if name in part])) for name in MOVED}
    return Comparison(values=values, summary=described(values, len(wanted)))


def quality(model: QuestionAnswerer, path: Path) -> Mapping[str, float]:
    """Exact match and F1 as SQuAD's evaluation has them; with unanswerable questions no answer is one as well."""
    examples = read_answered(path)
    found = model.answer_all(
        [(example.question, example.context) for example in examples],
        allow_no_answer=not all(example.answers for example in examples),
    )
    scores = [answer_scores(answer.text, example.answers) for answer, example in zip(found, examples, strict=True)]
    exact, overlap = np.mean(scores, axis=0).tolist()
    return {EXACT_MATCH.name: exact, F1.name: overlap}
