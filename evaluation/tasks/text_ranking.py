"""Reranking: how far the scores move, their order, and nDCG on documents with scores."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from piston.core.gates import Metric
from piston.evaluation.encoders import DISTANCE, Array, logits_moved
from piston.evaluation.labelled import read_scored
from piston.evaluation.quality import NDCG, SPEARMAN, ndcg, spearman
from piston.evaluation.tasks import Comparison
from piston.runtime.tasks.text_ranking import Reranker

ORDER = Metric(name="order", described="the rank correlation with the float model's scores", is_better_high=True)
METRICS = {metric.name: metric for metric in (DISTANCE, ORDER, NDCG, SPEARMAN)}
DEFAULTS = {"fp": "distance<=0.1%", "w8": "distance<=5%", "w8a8": "distance<=25%", "w4": "distance<=50%"}


def moved(found: Sequence[Array], wanted: Sequence[Array]) -> Comparison:
    """How far outputs, one for each text, are from the float model's."""
    values = {DISTANCE.name: logits_moved(found, wanted)[DISTANCE.name]}
    # The second logit over the first, where there are two.
    scores = [[float(output[-1] - output[0] * (len(output) > 1)) for output in side] for side in (found, wanted)]
    values[ORDER.name] = spearman(*scores)
    summary = (
        f"scores moved by {values[DISTANCE.name]:.2%} of their spread, rank correlation {values[ORDER.name]:.4f}, on "
        f"{len(wanted)} texts"
    )
    return Comparison(values=values, summary=summary)


def quality(model: Reranker, path: Path) -> Mapping[str, float]:
    """NDCG of the documents of each query, the mean of the queries, and the rank correlation of all scores."""
    examples = read_scored(path, ("query", "question"), ("document", "passage", "text"))
    found = model.pair_scores([(example.first, example.second) for example in examples], truncate=True).tolist()
    pairs = sorted(zip(examples, found, strict=True), key=lambda pair: pair[0].first)
    gains = []
    for _, group in groupby(pairs, key=lambda pair: pair[0].first):
        own = [*group]
        gains.append(ndcg([score for _, score in own], [example.score for example, _ in own]))
    return {
        NDCG.name: float(np.mean(gains)),
        SPEARMAN.name: spearman(found, [example.score for example in examples]),
    }
