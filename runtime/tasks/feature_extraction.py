"""Sentence embeddings: a bundle becomes an Embedder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.hashing import Hashing
from piston.core.bundle.interface import ENCODER
from piston.core.data_files import check_text
from piston.core.errors import BundleCorruptError, MisuseError, PromptTooLongError
from piston.runtime.bundle import Bundle
from piston.runtime.ragged import batches, padded

if TYPE_CHECKING:
    from piston.core.bundle.manifest import EngineSpec, Manifest
    from piston.runtime.backends.session import Session
    from piston.runtime.text.tokenizer import Tokenizer

TASK = "feature-extraction"


class Embedder:
    """A loaded bundle that turns texts into vectors; a context manager that frees the engine.

    Args:
        manifest: of the bundle, or of a model directory.
        session: its graph.
        tokenizer: its tokenizer.
        max_length: tokens of a text, the tokenizer's frame included.
        max_batch: texts of that length that are run at once; of shorter ones more are.
    """

    def __init__(
        self, manifest: "Manifest", session: "Session", tokenizer: "Tokenizer", *, max_length: int, max_batch: int
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_batch = max_batch
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self._session = session
        width = manifest.graphs[ENCODER].output("pooled").shape[-1]
        assert isinstance(width, int)
        self.dimensions = width

    @property
    def prompts(self) -> Mapping[str, str]:
        """What the checkpoint's authors put in front of texts, by name."""
        return dict(self.manifest.settings.get("prompts") or {})

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
            MisuseError: a text is empty or is no Unicode, there is no such prompt, or there are fewer dimensions.
            PromptTooLongError: a text is too long.
            EngineError: the backend fails.
        """
        if isinstance(texts, str):
            raise MisuseError("embed takes a list of texts; for one text give [text].")
        if dimensions is not None and not 1 <= dimensions <= self.dimensions:
            raise MisuseError(f"dimensions is {dimensions}; it must be from 1 to {self.dimensions}.")
        rows = self.encode(texts, prompt_name=prompt_name, max_tokens=self.max_length if truncate else None)
        return self.embed_tokens(rows, dimensions=dimensions)

    def encode(
        self, texts: Sequence[str], *, prompt_name: str | None = None, max_tokens: int | None = None
    ) -> list[list[int]]:
        """The row of token ids of each text, as `embed_tokens` takes them; arguments and errors as of `embed`.

        Args:
            texts: none of them empty.
            prompt_name: which of `prompts` goes in front.
            max_tokens: cut texts of more tokens at their end, the frame is kept; None: too long ones are refused.
        """
        prompt = self._prompt(prompt_name)
        return [self._encoded(prompt, text, index, max_tokens) for index, text in enumerate(texts)]

    def embed_tokens(self, rows: Sequence[Sequence[int]], *, dimensions: int | None = None) -> NDArray[np.float32]:
        """The vector of each row of token ids, float32 [rows, dimensions]; a row has its frame, and 1 token or more."""
        result = np.empty((len(rows), self.dimensions), np.float32)
        for batch in batches([len(row) for row in rows], tokens=self.max_batch * self.max_length):
            result[batch] = self._session.run(padded([rows[index] for index in batch]))["pooled"]
        return result if dimensions is None else self.shortened(result, dimensions)

    def shortened(self, vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
        """The first so many numbers of each vector, of length 1 again where the model's vectors are."""
        if dimensions == self.dimensions:
            return vectors
        result = np.ascontiguousarray(vectors[:, :dimensions])
        if self.manifest.settings.get("normalized"):
            result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.float32(1e-12))
        return result

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prompt(self, name: str | None) -> str:
        name = self.manifest.settings.get("default_prompt") if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise MisuseError(f"{self.manifest.model.name} has no prompt {name!r}; it has: {known}.")
        return self.prompts[name]

    def _encoded(self, prompt: str, text: str, index: int, max_tokens: int | None) -> list[int]:
        what = f"Text {index}"
        if not isinstance(text, str):
            raise MisuseError(f"{what} is {text!r:.40}; it must be a string.")
        if not text.strip():
            raise MisuseError(f"{what} is empty; leave it out.")
        ids = self.tokenizer.encode(prompt + check_text(text, what))
        limit = self.max_length if max_tokens is None else min(max_tokens, self.max_length)
        if len(ids) <= limit:
            return ids
        if max_tokens is None:
            raise PromptTooLongError(
                f"{what} has {len(ids)} tokens; {self.manifest.model.name} reads up to {limit}. Shorten it, "
                "or let its end be cut off (truncate)."
            )
        behind = self.tokenizer.frame[1]
        return [*ids[: limit - len(behind)], *behind]


def open_model(
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> Embedder:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`."""
    bundle.manifest.require_task(TASK, bundle.directory)
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.registry import Sizes, candidates, open_session
    from piston.runtime.loading import open_first, open_verified

    def opened(spec: "EngineSpec") -> Embedder:
        limit = _number(spec, "max_length")
        length, batch = max_length or limit, max_batch or _number(spec, "max_batch")
        if not 2 <= length <= limit or batch < 1:  # noqa: PLR2004
            raise MisuseError(
                f"max_length {length} and max_batch {batch}: {spec.target} was built for texts of 2 to {limit} tokens, "
                "and batches of 1 or more."
            )
        sizes = Sizes(num_slots=batch, capacity=length, threads=threads)
        parts = open_verified(bundle, spec, sizes, hashing, opening=open_session)
        model = Embedder(bundle.manifest, parts.engine, parts.tokenizer, max_length=length, max_batch=batch)
        model.target = spec.target
        return model

    model, model_remarks = open_first(candidates(bundle, target), opened)
    model.remarks = model_remarks
    return model


def _number(spec: "EngineSpec", name: str) -> int:
    value = spec.requested.get(name)
    if not isinstance(value, int):
        raise BundleCorruptError(f"The manifest states {name} of {spec.target} as {value!r}; build it again.")
    return value
