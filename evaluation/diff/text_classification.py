"""Text classification: labels that flipped, with the margins of both models, and thresholds that keep the old rates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.core.data_files import texts_of
from piston.core.errors import MisuseError
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.runtime.tasks.text_classification import TextClassifier

DATA = 'texts: one a line, or records with a "text"'
MULTI, REGRESSION = "multi_label", "regression"
MOVED = 0.05  # of the range of a regression's values: less is no change
Scores = NDArray[np.float32]


def differences(
    before: TextClassifier, after: TextClassifier, path: Path, options: DiffOptions, progress: Progress
) -> Diff:
    """Classify all texts with both models. A flip is the larger, the surer both were of their labels."""
    if before.labels != after.labels:
        raise MisuseError("The two models have different labels; only models of the same labels can be compared.")
    texts = texts_of(path)[: options.max_records]
    scores = []
    for done, model in enumerate((before, after)):
        progress.step("classifying", done, 2)
        scores.append(model.scores(texts, truncate=True))
    if before.problem_type == REGRESSION:
        return _values(texts, *scores)
    decided = [_decided(model, found) for model, found in zip((before, after), scores, strict=True)]
    changed = [
        _change(
            index,
            texts[index],
            before.labels,
            (decided[0][index], decided[1][index]),
            (scores[0][index], scores[1][index]),
        )
        for index in np.flatnonzero((decided[0] != decided[1]).any(axis=1)).tolist()
    ]
    figures = [("equal_labels", 1 - len(changed) / len(texts), "texts whose labels are the same")]
    if before.problem_type == MULTI:
        figures += [
            (f"threshold:{label}", value, f"keeps the rate of {label!r} that the first model has")
            for label, value in refitted(before.labels, decided[0], scores[1]).items()
        ]
    return Diff(
        task="text-classification",
        num_records=len(texts),
        figures=tuple(figures),
        changes=worst_first(changed),
    )


def refitted(labels: Sequence[str], decided: NDArray[np.bool_], scores: Scores) -> dict[str, float]:
    """For each label the threshold at which `scores` [texts, labels] give it as often as was `decided`.

    Half way between the lowest score that gets the label and the highest that does not.
    """
    found = {}
    for index, label in enumerate(labels):
        count, ordered = int(decided[:, index].sum()), np.sort(scores[:, index])[::-1].astype(np.float64)
        low = ordered[count] if count < len(ordered) else 0.0
        high = ordered[count - 1] if count else 1.0
        found[label] = float((low + high) / 2)
    return found


def _decided(model: TextClassifier, scores: Scores) -> NDArray[np.bool_]:
    """Which labels each text has, bool [texts, labels]."""
    if model.problem_type == MULTI:
        bounds = np.array([model.thresholds.get(label, 0.5) for label in model.labels], np.float32)
        return np.asarray(scores >= bounds)
    return np.asarray(np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None])


def _change(
    index: int,
    text: str,
    labels: Sequence[str],
    decided: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    scores: tuple[Scores, Scores],
) -> Change:
    """One text; pairs are of the first and the second model."""
    flipped = np.flatnonzero(decided[0] != decided[1])
    moves = "; ".join(f"{labels[label]} {scores[0][label]:.3f} -> {scores[1][label]:.3f}" for label in flipped.tolist())
    return Change(
        record=index + 1,
        text=text,
        before=", ".join(labels[label] for label in np.flatnonzero(decided[0]).tolist()) or "none",
        after=", ".join(labels[label] for label in np.flatnonzero(decided[1]).tolist()) or "none",
        note=moves,
        size=float(np.abs(scores[1] - scores[0])[flipped].max()),
    )


def _values(texts: Sequence[str], old: Scores, new: Scores) -> Diff:
    """Of a regression: values that moved by more than a twentieth of their range."""
    spread = float(np.ptp(old)) or 1.0
    moved = np.abs(new - old).max(axis=1) / spread
    changed = [
        Change(
            record=index + 1,
            text=texts[index],
            before=", ".join(f"{value:.4g}" for value in old[index].tolist()),
            after=", ".join(f"{value:.4g}" for value in new[index].tolist()),
            note=f"moved by {moved[index]:.1%} of the range of all values",
            size=float(moved[index]),
        )
        for index in np.flatnonzero(moved > MOVED).tolist()
    ]
    figures = (("largest_move", float(moved.max()), "the largest move of a value, over the range of all values"),)
    return Diff(task="text-classification", num_records=len(texts), figures=figures, changes=worst_first(changed))
