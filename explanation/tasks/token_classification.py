"""Token classification: what each word does to the probability of each span's label."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from piston.core.errors import MisuseError
from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.opened import Opened
from piston.explanation.result import Array, Asked, Explanation
from piston.runtime.scores import softmax
from piston.runtime.tasks.token_classification import TokenClassifier, label_without_prefix

if TYPE_CHECKING:
    from tokenizers import Encoding

    from piston.explanation.occlusion import Span

TAKES = {"text": True}
Labelled = tuple[str, int, int]  # a label without B- or I-, and the characters of its span


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the spans that `tag` finds, or of those of another model.

    The score of a span is the probability of its label, beginning or inside, the mean of its tokens; 0 where none of
    its tokens are left.

    Raises:
        MisuseError: the model does not have a label of the other model.
        PromptTooLongError: the text is too long.
    """
    model: TokenClassifier = opened.model
    text = asked.texts["text"]
    found = model.tag([text])[0]
    spans: list[Labelled] = [(span.label, span.start, span.end) for span in found]
    if asked.like is not None:
        spans = list(asked.like.fixed["spans"])
    columns = [_columns(model, label) for label, _, _ in spans]

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        rows = [model.encoding(each["text"]) for each in texts]
        places = [[(start, end) for _, start, end in spans], *([_moved(each, spans) for each in variants])]
        return np.array(
            [
                [_probability(row, logits, *span, own) for span, own in zip(each, columns, strict=True)]
                for row, logits, each in zip(rows, model.run(rows), places, strict=True)
            ],
            np.float64,
        ).reshape(len(texts), len(spans))

    names = [f"probability of {label} of {text[start:end]!r}" for label, start, end in spans]
    replacement = replacement_of(asked.replacement, model.tokenizer)
    attributions = attributions_of(names, asked.texts, {"text": model.tokenizer}, replacement, score) if spans else ()
    return opened.explanation(
        ", ".join(f"{span.text} ({span.label})" for span in found) or "no span",
        [(f"{span.text} ({span.label})", span.score) for span in found],
        attributions=attributions,
        remarks=() if spans else ("No span was found, so no word changes the probability of one.",),
        fixed={"spans": spans},
        **opened.attention_of(model.encoding(text), asked),
    )


def _columns(model: TokenClassifier, label: str) -> list[int]:
    """The logits of a label: with B-, with I-, and as it is."""
    found = [place for place, name in enumerate(model.labels) if label_without_prefix(name) == label]
    if not found:
        known = ", ".join(dict.fromkeys(map(label_without_prefix, model.labels)))
        raise MisuseError(f"The model has no label {label!r}; it has {known}.")
    return found


def _moved(variant: Variant, spans: Sequence[Labelled]) -> "list[Span]":
    """Where the characters of each span are; those of one that was left out are what replaced it."""
    moved = []
    for _, start, end in spans:
        first, last = variant.moved("text", start), variant.moved("text", end)
        moved.append((first, last if last > first else first + len(variant.replacement)))
    return moved


def _probability(row: "Encoding", logits: Array, start: int, end: int, columns: Sequence[int]) -> float:
    tokens = [
        place
        for place, (first, last) in enumerate(row.offsets)
        if not row.special_tokens_mask[place] and first < end and last > start
    ]
    return float(softmax(logits[tokens])[:, columns].sum(axis=1).mean()) if tokens else 0.0
