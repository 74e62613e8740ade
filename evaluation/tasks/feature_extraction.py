"""Sentence embeddings: the cosine to the float model's, and the rank correlation with people's judgement."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.core.gates import Metric
from piston.evaluation.encoders import both_outputs
from piston.evaluation.tasks import Comparison

METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="cosine", described="the mean cosine to the float model", is_better_high=True),
        Metric(name="cosine_min", described="the lowest cosine to the float model", is_better_high=True),
    )
}
DEFAULTS = {"fp": "cosine>=0.9999", "w8": "cosine>=0.999", "w8a8": "cosine>=0.98", "w4": "cosine>=0.95"}
Vectors = NDArray[np.float32]


def compare(candidate: Path, reference: Path, rows: NDArray[np.int64], progress: Progress) -> Comparison:
    """Embed rows [rows, tokens], whole and shortened, with both model directories."""
    found = cosine(*map(np.stack, both_outputs(candidate, reference, rows, progress)))
    values = {"cosine": float(found.mean()), "cosine_min": float(found.min())}
    summary = (
        f"cosine to the float model {values['cosine']:.5f} on average and {values['cosine_min']:.5f} at least, on "
        f"{len(found)} texts of up to {rows.shape[1]} tokens"
    )
    return Comparison(values=values, summary=summary)


def cosine(left: Vectors, right: Vectors) -> Vectors:
    """Of each pair of rows [rows, dim]."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / np.maximum(norms, np.float32(1e-12)), np.float32)


def spearman(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(scores), _ranks(labels))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], np.float64)
