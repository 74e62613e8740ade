"""Token classification: how far the logits of each token move, the decisions, and F1 of entities in tagged words."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from piston.evaluation.encoders import AGREEMENT, DISTANCE, KL, Array, described, logits_moved
from piston.evaluation.labelled import Tagged, read_tagged
from piston.evaluation.quality import ACCURACY, F1, accuracy, entities, micro_f1
from piston.evaluation.tasks import Comparison
from piston.runtime.tasks.token_classification import Span, TokenClassifier

METRICS = {metric.name: metric for metric in (DISTANCE, AGREEMENT, KL, F1, ACCURACY)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def moved(found: Sequence[Array], wanted: Sequence[Array]) -> Comparison:
    """How far outputs, one for each text, are from the float model's."""
    values = logits_moved(found, wanted)
    return Comparison(values=values, summary=described(values, len(wanted)))


def quality(model: TokenClassifier, path: Path) -> Mapping[str, float]:
    """F1 of the entities, and the accuracy of the tags, of words joined by spaces.

    A word has the tag of its first token, and O where the model does not read that far.
    """
    examples = read_tagged(path, model.labels)
    texts = [" ".join(example.words) for example in examples]
    spans = model.tag(texts, aggregation="none", ignore_labels=(), truncate=True)
    found = [_tags_of(example, own) for example, own in zip(examples, spans, strict=True)]
    return {
        F1.name: micro_f1([entities(tags) for tags in found], [entities(example.tags) for example in examples]),
        ACCURACY.name: accuracy(
            [tag for tags in found for tag in tags], [tag for example in examples for tag in example.tags]
        ),
    }


def _tags_of(example: Tagged, spans: list[Span]) -> list[str]:
    ends = [*accumulate(len(word) + 1 for word in example.words)]  # of each word with the space behind it
    tags: list[str | None] = [None] * len(ends)
    for span in spans:
        place = int(np.searchsorted(ends, span.start, side="right"))
        if tags[place] is None:
            tags[place] = span.label
    return [tag or "O" for tag in tags]
