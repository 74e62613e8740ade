"""Reranking: what each word of query and document does to the score."""

from collections.abc import Mapping, Sequence

import numpy as np

from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.opened import Opened
from piston.explanation.result import Asked, Explanation
from piston.runtime.tasks.text_ranking import Reranker

TAKES = {"query": True, "document": True}


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of one document."""
    model: Reranker = opened.model

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        del variants
        found = model.pair_scores([(each["query"], each["document"]) for each in texts])
        return np.asarray(found, np.float64)[:, None]

    replacement = replacement_of(asked.replacement, model.tokenizer)
    words = dict.fromkeys(("query", "document"), model.tokenizer)
    attributions = attributions_of(["score"], asked.texts, words, replacement, score)
    value = attributions[0].value
    return opened.explanation(
        f"score {value:.4g}",
        [("score", value)],
        attributions=attributions,
        **opened.attention_of(model.row(asked.texts["query"], asked.texts["document"]), asked),
    )
