"""Embeddings: how far each word turns the vector of its text."""

from collections.abc import Mapping, Sequence

import numpy as np

from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.opened import Opened
from piston.explanation.result import Asked, Explanation
from piston.runtime.tasks.feature_extraction import Embedder

TAKES = {"text": True}


def explain(opened: Opened, asked: Asked) -> Explanation:
    """The cosine of the text's vector with itself is 1; an effect is what it loses without a word."""
    model: Embedder = opened.model

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        del variants
        vectors = np.asarray(model.embed([each["text"] for each in texts]), np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray((vectors @ vectors[0])[:, None], np.float64)

    replacement = replacement_of(asked.replacement, model.tokenizer)
    name = "cosine with the whole text's vector"
    attributions = attributions_of([name], asked.texts, {"text": model.tokenizer}, replacement, score)
    return opened.explanation(
        f"a vector of {model.width} numbers",
        [],
        attributions=attributions,
        **opened.attention_of(model.row(asked.texts["text"]), asked),
    )
