"""Sentence embeddings: a bundle becomes an Embedder."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.errors import MisuseError
from piston.runtime.encoder import CHUNK, EncoderModel, check_input, open_encoder


class Embedder(EncoderModel):
    """A loaded bundle that turns texts into vectors; see EncoderModel."""

    TASK = "feature-extraction"

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        return self.width

    @property
    def prompts(self) -> Mapping[str, str]:
        """What the checkpoint's authors put in front of texts, by name."""
        return dict(self.manifest.settings.get("prompts") or {})

    @checked_arguments
    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> NDArray[np.float32]:
        """The vector of each text, float32 [texts, dimensions].

        Args:
            texts: none of them empty.
            prompt_name: which of `prompts` goes in front of each text; by default the checkpoint's default, if any.
            truncate: cut texts of more than `max_length` tokens at their end; without it they are refused.
            dimensions: keep the first so many, for models that were trained for it (Matryoshka); they are brought to
                length 1 again where the model does so.

        Raises:
            MisuseError: an argument is of another type, a text is empty or is no Unicode, there is no such prompt, or
                there are fewer dimensions.
            PromptTooLongError: a text is too long.
            EngineError: the backend fails.
        """
        if dimensions is not None and not 1 <= dimensions <= self.dimensions:
            raise MisuseError(f"dimensions is {dimensions}; it must be from 1 to {self.dimensions}.")
        max_tokens = self.max_length if truncate else None
        result = np.empty((len(texts), dimensions or self.dimensions), np.float32)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            rows = self.encode(chunk, prompt_name=prompt_name, max_tokens=max_tokens, first=start)
            result[start : start + CHUNK] = self.embed_tokens(rows, dimensions=dimensions)
        return result

    def encode(
        self, texts: Sequence[str], *, prompt_name: str | None = None, max_tokens: int | None = None, first: int = 0
    ) -> list[list[int]]:
        """The row of token ids of each text, as `embed_tokens` takes them; errors as of `embed`.

        Args:
            texts: none of them empty.
            prompt_name: which of `prompts` goes in front.
            max_tokens: cut texts of more tokens at their end, the frame is kept; None: too long ones are refused.
            first: the number of the first text in error messages.
        """
        prompt = self._prompt(prompt_name)
        rows = []
        for index, text in enumerate(texts, first):
            check_input(text, f"Text {index}")
            rows.append(self.row(prompt + text, what=f"Text {index}", max_tokens=max_tokens).ids)
        return rows

    def embed_tokens(self, rows: Sequence[Sequence[int]], *, dimensions: int | None = None) -> NDArray[np.float32]:
        """The vector of each row of token ids, float32 [rows, dimensions]; a row has its frame, and 1 token or more."""
        result = np.empty((len(rows), self.dimensions), np.float32)
        for index, output in self.outputs(rows):
            result[index] = output
        return result if dimensions is None else self.shortened(result, dimensions)

    def shortened(self, vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
        """The first so many numbers of each vector, of length 1 again where the model's vectors are."""
        if dimensions == self.dimensions:
            return vectors
        result = np.ascontiguousarray(vectors[:, :dimensions])
        if self.manifest.settings.get("normalized"):
            result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.float32(1e-12))
        return result

    def _prompt(self, name: str | None) -> str:
        name = self.manifest.settings.get("default_prompt") if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise MisuseError(f"{self.manifest.model.name} has no prompt {name!r}; it has: {known}.")
        return self.prompts[name]


MODEL = Embedder
open_model = partial(open_encoder, Embedder)
