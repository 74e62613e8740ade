"""Sentence embeddings: the cosine to the float model's, and the rank correlation with people's judgement."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.gates import Metric
from piston.evaluation.encoders import Array
from piston.evaluation.labelled import read_scored
from piston.evaluation.quality import SPEARMAN, spearman
from piston.evaluation.tasks import Comparison
from piston.runtime.tasks.feature_extraction import Embedder

METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="cosine", described="the mean cosine to the float model", is_better_high=True),
        Metric(name="cosine_min", described="the lowest cosine to the float model", is_better_high=True),
        SPEARMAN,
    )
}
DEFAULTS = {"fp": "cosine>=0.9999", "w8": "cosine>=0.999", "w8a8": "cosine>=0.98", "w4": "cosine>=0.95"}
Vectors = NDArray[np.float32]


def moved(found: Sequence[Array], wanted: Sequence[Array]) -> Comparison:
    """How far outputs, one for each text, are from the float model's."""
    cosines = cosine(np.stack(found), np.stack(wanted))
    values = {"cosine": float(cosines.mean()), "cosine_min": float(cosines.min())}
    summary = (
        f"cosine to the float model {values['cosine']:.5f} on average and {values['cosine_min']:.5f} at least, on "
        f"{len(cosines)} texts"
    )
    return Comparison(values=values, summary=summary)


def cosine(left: Vectors, right: Vectors) -> Vectors:
    """Of each pair of rows [rows, dim]."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / np.maximum(norms, np.float32(1e-12)), np.float32)


def quality(model: Embedder, path: Path) -> Mapping[str, float]:
    """The rank correlation of the cosines of pairs of texts with their scores."""
    examples = read_scored(path, ("sentence1", "text1", "text"), ("sentence2", "text2", "text_pair"))
    vectors = model.embed([text for example in examples for text in (example.first, example.second)], truncate=True)
    scores = cosine(vectors[::2], vectors[1::2]).tolist()
    return {SPEARMAN.name: spearman(scores, [example.score for example in examples])}
