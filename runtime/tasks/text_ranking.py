"""Reranking: a bundle becomes a Reranker."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.errors import BundleCorruptError, MisuseError, PromptTooLongError
from piston.runtime.encoder import EncoderModel, check_input, open_encoder
from piston.runtime.scores import sigmoid, softmax
from piston.runtime.text.tokenizer import TokenRow

if TYPE_CHECKING:
    from piston.runtime.encoder import EncodedRow

ACTIVATIONS = ("sigmoid", "identity", "softmax")  # of the score; softmax: the second of two logits


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the list that was given, with its score."""

    index: int
    score: float


class Reranker(EncoderModel):
    """A loaded bundle that orders documents by what they say about a query; see EncoderModel."""

    TASK = "text-ranking"

    @property
    def instruction(self) -> str | None:
        """What a language model is told to look for, unless the caller says it; None where it is told nothing."""
        value = self.manifest.settings.get("instruction")
        return None if value is None else str(value)

    @property
    def prompt(self) -> tuple[str, ...]:
        """What a language model reads before the instruction, the query and the document, and behind; () of others.

        One that is told nothing has no part before the instruction.
        """
        return tuple(self.manifest.settings.get("prompt") or ())

    @property
    def num_prompt_tokens(self) -> int:
        """See EncoderModel."""
        own = "".join(self.prompt) + (self.instruction or "")
        return len(self.tokenizer.encode(own, add_special_tokens=False)) if self.prompt else 0

    def row(
        self,
        text: str,
        pair: str | None = None,
        *,
        what: str = "The text",
        max_tokens: int | None = None,
        instruction: str | None = None,
    ) -> "EncodedRow":
        """See EncoderModel. What a language model reads behind the document stays when that is cut.

        Control tokens in the texts, such as <|im_end|>, are ordinary text to a language model, so that a document
        cannot forge what its prompt says.
        """
        self._check_instruction(instruction)
        if not self.prompt or pair is None:
            return super().row(text, pair, what=what, max_tokens=max_tokens)
        for each in (text, pair):
            check_input(each, what)
        if self.manifest.settings.get("strips"):
            text, pair = text.strip(), pair.strip()
        *start, before, between, behind = ((part, False) for part in self.prompt)
        told = [(self.instruction or "", False)] if instruction is None else [(instruction, True)]
        fixed = [*start, *told, before, (text, True), between]
        row = self.tokenizer.encode_around([*fixed, (pair, True), behind])
        limit = self.max_length if max_tokens is None else min(max_tokens, self.max_length)
        if len(row) <= limit:
            return row
        if max_tokens is None:
            raise PromptTooLongError(
                f"{what} has {len(row)} tokens with its prompt; {self.manifest.model.name} reads up to "
                f"{self.max_length}. Shorten it, or let its end be cut off (truncate)."
            )
        tail, least = self.tokenizer.encode_around([behind]), self.tokenizer.encode_around(fixed)
        if len(least) + len(tail) >= limit:
            raise MisuseError(
                f"{what} cannot be cut to {limit} tokens; the query and the prompt take {len(least) + len(tail)} of "
                "them."
            )
        head, room = self.tokenizer.encode_around([*fixed, (pair, True)]), limit - len(tail)
        return TokenRow([*head.ids[:room], *tail.ids], [*head.tokens[:room], *tail.tokens])

    def _check_instruction(self, instruction: str | None) -> None:
        if instruction is not None and self.instruction is None:
            raise MisuseError(f"{self.manifest.model.name} takes no instruction; leave it out.")

    @checked_arguments
    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = False,
        instruction: str | None = None,
    ) -> list[Ranked]:
        """The documents with their scores, best first; equal ones in the order given.

        Args:
            query: not empty.
            documents: none of them empty.
            top_n: keep the best so many.
            raw_scores: logits instead of what the checkpoint's authors make of them, mostly probabilities.
            truncate: cut query and document together to `max_length` tokens, the longer one first; without it they
                are refused.
            instruction: what a language model is to look for, instead of `instruction`.

        Raises:
            MisuseError: an argument is of another type, a text is empty or is no Unicode, top_n is below 1, or the
                model takes no instruction.
            PromptTooLongError: query and document are too long together.
            EngineError: the backend fails.
        """
        if top_n is not None and top_n < 1:
            raise MisuseError(f"top_n is {top_n}; it must be 1 or more.")
        scores = self.scores(query, documents, raw_scores=raw_scores, truncate=truncate, instruction=instruction)
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [Ranked(int(index), float(scores[index])) for index in order]

    @checked_arguments
    def scores(
        self,
        query: str,
        documents: Sequence[str],
        *,
        raw_scores: bool = False,
        truncate: bool = False,
        instruction: str | None = None,
    ) -> NDArray[np.float32]:
        """The score of each document, float32 [documents]; arguments and errors as of `rerank`."""
        check_input(query, "The query")
        pairs = [(query, document) for document in documents]
        return self.pair_scores(pairs, raw_scores=raw_scores, truncate=truncate, instruction=instruction)

    @checked_arguments
    def pair_scores(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        raw_scores: bool = False,
        truncate: bool = False,
        instruction: str | None = None,
    ) -> NDArray[np.float32]:
        """The score of each pair of a query and a document, float32 [pairs]; errors as of `rerank`."""
        limit = self.max_length if truncate else None
        found = self.each(
            pairs,
            lambda index, pair: self.row(*pair, what=f"Document {index}", max_tokens=limit, instruction=instruction),
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
