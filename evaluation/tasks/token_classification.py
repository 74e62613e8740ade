"""Token classification: how far the logits of each token move, and the decisions."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.evaluation.encoders import AGREEMENT, DISTANCE, KL, both_outputs, described, logits_moved
from piston.evaluation.tasks import Comparison

METRICS = {metric.name: metric for metric in (DISTANCE, AGREEMENT, KL)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def compare(candidate: Path, reference: Path, rows: NDArray[np.int64], progress: Progress) -> Comparison:
    """The logits of rows [rows, tokens], whole and shortened, of both model directories."""
    found, wanted = both_outputs(candidate, reference, rows, progress)
    values = logits_moved(found, wanted)
    return Comparison(values=values, summary=described(values, len(wanted), rows.shape[1]))
