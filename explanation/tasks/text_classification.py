"""Classification and regression: what each word does to the probability of the label."""

from collections.abc import Mapping, Sequence

import numpy as np

from piston.core.errors import MisuseError
from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.opened import Opened, pair_of
from piston.explanation.result import Asked, Explanation
from piston.runtime.tasks.text_classification import TextClassifier

TAKES = {"text": True, "text_pair": False}
HAS_LABELS = True


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the label that was asked for, or the best one.

    Raises:
        MisuseError: the model has no such label, or a text is empty.
    """
    model: TextClassifier = opened.model
    text = pair_of(asked.texts, "text", "text_pair")
    best = model.classify([text])[0]
    label = best[0].label if asked.label is None else asked.label
    if asked.like is not None:
        label = str(asked.like.fixed["label"])
    if label not in model.labels:
        raise MisuseError(f"The model has no label {label!r}; it has {', '.join(model.labels)}.")
    column = model.labels.index(label)

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        del variants
        found = model.scores([pair_of(each, "text", "text_pair") for each in texts])
        return np.asarray(found[:, [column]], np.float64)

    kind = "value" if model.problem_type == "regression" else "probability"
    attributions = attributions_of(
        [f"{kind} of {label}"],
        asked.texts,
        dict.fromkeys(asked.texts, model.tokenizer),
        replacement_of(asked.replacement, model.tokenizer),
        score,
    )
    return opened.explanation(
        f"{best[0].label} ({best[0].score:.4g})",
        [(item.label, item.score) for item in best],
        attributions=attributions,
        fixed={"label": label},
        **opened.attention_of(model.row(*([text] if isinstance(text, str) else text)), asked),
    )
