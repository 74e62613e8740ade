"""Text classification and regression: how far the logits move, the decisions, and accuracy and F1 on labelled texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piston.core.errors import MisuseError
from piston.evaluation.diff.text_classification import refitted
from piston.evaluation.encoders import AGREEMENT, DISTANCE, KL, Array, described, logits_moved
from piston.evaluation.labelled import read_labelled
from piston.evaluation.quality import ACCURACY, F1, SPEARMAN, accuracy, macro_f1, micro_f1, spearman
from piston.evaluation.tasks import Comparison
from piston.runtime.tasks.text_classification import TextClassifier

METRICS = {metric.name: metric for metric in (DISTANCE, AGREEMENT, KL, ACCURACY, F1, SPEARMAN)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def moved(found: Sequence[Array], wanted: Sequence[Array]) -> Comparison:
    """How far outputs, one for each text, are from the float model's."""
    values = logits_moved(found, wanted)
    return Comparison(values=values, summary=described(values, len(wanted)))


def quality(model: TextClassifier, path: Path) -> Mapping[str, float]:
    """Figures on labelled texts.

    Of one label a text: accuracy, and the mean F1 of the labels. Of several: the share of texts whose labels are all
    right, and F1 over all of them. Of a regression: the rank correlation.
    """
    examples = read_labelled(path, model.labels, is_regression=model.problem_type == "regression")
    scores = model.scores([_text(example.texts) for example in examples], truncate=True)
    if model.problem_type == "regression":
        return {SPEARMAN.name: spearman(scores[:, 0].tolist(), [example.value for example in examples])}
    wanted = [example.labels for example in examples]
    if model.problem_type == "single_label":
        best = [model.labels[index] for index in scores.argmax(axis=1)]
        if several := next((number for number, labels in enumerate(wanted, 1) if len(labels) != 1), None):
            raise MisuseError(
                f"{path}, record {several}, has {len(wanted[several - 1])} labels; the model gives each text one."
            )
        truth = [labels[0] for labels in wanted]
        return {ACCURACY.name: accuracy(best, truth), F1.name: macro_f1(best, truth)}
    bounds = [model.thresholds.get(label, 0.5) for label in model.labels]
    found = [frozenset(np.array(model.labels)[row >= bounds].tolist()) for row in scores]
    return {
        ACCURACY.name: accuracy(found, [frozenset(labels) for labels in wanted]),
        F1.name: micro_f1(found, wanted),
    }


def refit(model: TextClassifier, reference: TextClassifier, path: Path) -> Mapping[str, Any]:
    """Settings of a quantized model: of several labels a text the thresholds at which it gives each label as often.

    As often as the float model does on the texts of the file; the labels that it has are not read for that.
    """
    if model.problem_type != "multi_label":
        return {}
    texts = [_text(example.texts) for example in read_labelled(path, model.labels)]
    bounds = np.array([reference.thresholds.get(label, 0.5) for label in reference.labels], np.float32)
    decided = reference.scores(texts, truncate=True) >= bounds
    return {"thresholds": refitted(model.labels, decided, model.scores(texts, truncate=True))}


def _text(texts: tuple[str, ...]) -> str | tuple[str, str]:
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])
