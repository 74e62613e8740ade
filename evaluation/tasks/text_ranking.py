"""Reranking: how far the scores move, and their order."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.core.gates import Metric
from piston.evaluation.encoders import DISTANCE, both_outputs, logits_moved
from piston.evaluation.tasks import Comparison
from piston.evaluation.tasks.feature_extraction import spearman

ORDER = Metric(name="order", described="the rank correlation with the float model's scores", is_better_high=True)
METRICS = {metric.name: metric for metric in (DISTANCE, ORDER)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def compare(candidate: Path, reference: Path, rows: NDArray[np.int64], progress: Progress) -> Comparison:
    """The scores of rows [rows, tokens], whole and shortened, of both model directories."""
    found, wanted = both_outputs(candidate, reference, rows, progress)
    values = {DISTANCE.name: logits_moved(found, wanted)[DISTANCE.name]}
    # The second logit over the first, where there are two.
    scores = [[float(output[-1] - output[0] * (len(output) > 1)) for output in side] for side in (found, wanted)]
    values[ORDER.name] = spearman(*scores)
    summary = (
        f"scores moved by {values[DISTANCE.name]:.2%} of their spread, rank correlation {values[ORDER.name]:.4f}, on "
        f"{len(wanted)} texts of up to {rows.shape[1]} tokens"
    )
    return Comparison(values=values, summary=summary)
