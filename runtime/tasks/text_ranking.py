"""Reranking: a bundle becomes a Reranker."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import BundleCorruptError, MisuseError
from piston.runtime.encoder import EncoderModel, check_input, check_list, open_encoder
from piston.runtime.scores import sigmoid, softmax

ACTIVATIONS = ("sigmoid", "identity", "softmax")  # of the score; softmax: the second of two logits


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the list that was given, with its score."""

    index: int
    score: float


class Reranker(EncoderModel):
    """A loaded bundle that orders documents by what they say about a query; see EncoderModel."""

    TASK = "text-ranking"

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = False,
    ) -> list[Ranked]:
        """The documents with their scores, best first; equal ones in the order given.

        Args:
            query: not empty.
            documents: none of them empty.
            top_n: keep the best so many.
            raw_scores: logits instead of what the checkpoint's authors make of them, mostly probabilities.
            truncate: cut query and document together to `max_length` tokens, the longer one first; without it they
                are refused.

        Raises:
            MisuseError: a text is empty or is no Unicode, or top_n is below 1.
            PromptTooLongError: query and document are too long together.
            EngineError: the backend fails.
        """
        if top_n is not None and top_n < 1:
            raise MisuseError(f"top_n is {top_n}; it must be 1 or more.")
        scores = self.scores(query, documents, raw_scores=raw_scores, truncate=truncate)
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [Ranked(int(index), float(scores[index])) for index in order]

    def scores(
        self, query: str, documents: Sequence[str], *, raw_scores: bool = False, truncate: bool = False
    ) -> NDArray[np.float32]:
        """The score of each document, float32 [documents]; arguments and errors as of `rerank`."""
        check_list(documents, "rerank")
        check_input(query, "The query")
        return self.pair_scores([(query, document) for document in documents], raw_scores=raw_scores, truncate=truncate)

    def pair_scores(
        self, pairs: Sequence[tuple[str, str]], *, raw_scores: bool = False, truncate: bool = False
    ) -> NDArray[np.float32]:
        """The score of each pair of a query and a document, float32 [pairs]; errors as of `rerank`."""
        found = self.each(
            pairs,
            lambda index, pair: self.row(
                *pair, what=f"Document {index}", max_tokens=self.max_length if truncate else None
            ),
            lambda _index, _row, output: output.copy(),
        )
        return self.scores_of(np.array(found, np.float32).reshape(len(pairs), self.width), raw_scores=raw_scores)

    def scores_of(self, logits: NDArray[np.float32], *, raw_scores: bool = False) -> NDArray[np.float32]:
        """Logits [pairs, 1 or 2] to scores [pairs]."""
        activation = self.manifest.settings.get("activation")
        if activation not in ACTIVATIONS:
            raise BundleCorruptError(
                f"The manifest of {self.manifest.model.name} states activation {activation!r}; make it again."
            )
        if activation == "softmax":
            return logits[:, -1] - logits[:, 0] if raw_scores else softmax(logits)[:, -1]
        return logits[:, 0] if raw_scores or activation == "identity" else sigmoid(logits[:, 0])


MODEL = Reranker
open_model = partial(open_encoder, Reranker)
