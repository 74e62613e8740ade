"""Text to text: how far a model moved from the float model's answers, token by token."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.evaluation.encoder_decoders import KL, TOP1, moved
from piston.evaluation.tasks import Comparison
from piston.runtime.backends.engine import Source

METRICS = {metric.name: metric for metric in (KL, TOP1)}
DEFAULTS = {"fp": "kl<=0.001", "w8": "kl<=0.02", "w8a8": "kl<=0.1", "w4": "kl<=0.3"}


def compare(candidate: Path, reference: Path, rows: NDArray[np.int64], progress: Progress) -> Comparison:
    """Answer rows [rows, tokens] of token ids by the reference, and read the answers with both model directories."""
    values, num_tokens = moved(candidate, reference, [Source.of_text(row.tolist()) for row in rows], progress)
    summary = (
        f"KL divergence from the float model {values['kl']:.4f} nats, {values['top1']:.1%} of its greedy tokens, over "
        f"{num_tokens} tokens of answers to {len(rows)} texts"
    )
    return Comparison(values=values, summary=summary)
