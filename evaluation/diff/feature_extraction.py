"""Embedding models: the nearest neighbours of each text among the others, which is what retrieval returns."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.core.data_files import texts_of
from piston.core.errors import MisuseError
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.runtime.tasks.feature_extraction import Embedder

DATA = 'texts: one a line, or records with a "text"'
OPTIONS = ("top",)
LISTED = 3  # neighbours that are named
AT_ONCE = 512  # texts whose neighbours are looked for together
Vectors = NDArray[np.float32]


def differences(before: Embedder, after: Embedder, path: Path, options: DiffOptions, progress: Progress) -> Diff:
    """Embed all texts with both models and compare each text's `top` nearest neighbours by cosine."""
    texts = texts_of(path)[: options.max_records]
    top = min(options.top, len(texts) - 1)
    if top < 1:
        raise MisuseError(f"{path} has {len(texts)} texts; neighbours need two or more.")
    neighbours = []
    for done, model in enumerate((before, after)):
        progress.step("embedding", done, 2)
        neighbours.append(nearest(model.embed(texts, truncate=True), top))
    shared = np.array([len(np.intersect1d(left, right)) for left, right in zip(*neighbours, strict=True)])
    changed = [
        _change(index, texts, neighbours[0][index], neighbours[1][index], top)
        for index in np.flatnonzero(shared < top).tolist()
    ]
    return Diff(
        task="feature-extraction",
        num_records=len(texts),
        figures=(
            (f"neighbours@{top}", float(shared.mean()) / top, "neighbours that both models find, on average"),
            (
                "equal_first",
                float(np.mean(neighbours[0][:, 0] == neighbours[1][:, 0])),
                "texts whose nearest neighbour is the same",
            ),
        ),
        changes=worst_first(changed),
    )


def nearest(vectors: Vectors, top: int) -> NDArray[np.int64]:
    """The `top` other rows of highest cosine to each row of [rows, dim], int64 [rows, top], nearest first."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    found = []
    for start in range(0, len(unit), AT_ONCE):
        scores = unit[start : start + AT_ONCE] @ unit.T
        scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :top])
    return np.concatenate(found)


def _change(index: int, texts: list[str], before: NDArray[np.int64], after: NDArray[np.int64], top: int) -> Change:
    lost = [number for number in before.tolist() if number not in set(after.tolist())]
    gained = [number for number in after.tolist() if number not in set(before.tolist())]
    highest = min(before.tolist().index(number) for number in lost)
    return Change(
        record=index + 1,
        text=texts[index],
        before=_listed(lost, texts),
        after=_listed(gained, texts),
        note=f"{len(lost)} of {top} neighbours changed, the nearest of them at place {highest + 1}",
        size=len(lost) / top + 1 / (highest + 2),
    )


def _listed(numbers: list[int], texts: list[str]) -> str:
    rest = len(numbers) - LISTED
    shown = [f"{number + 1}: {texts[number]}" for number in numbers[:LISTED]]
    return "\n".join([*shown, *([f"and {rest} more"] if rest > 0 else [])])
