"""The teacher's answers to rows of tokens, kept on disk up to a bound.

What is kept of a row is what its lm_head reads, [tokens, hidden], which gives the same logits again by one product, and
is a hundredth of their size. Where a model does more behind its lm_head (scales, caps), the logits themselves are kept.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """To one row: logits float32 [tokens, vocabulary], and hidden states [layers, tokens, hidden] if asked for."""

    logits: Tensor
    hidden: Tensor | None


class Teacher:
    """Answers of a frozen model.

    Args:
        model: of transformers, in evaluation.
        directory: of the kept answers; files in it are from the same model and rows.
        max_bytes: of these files together; answers beyond are computed each time.
        layers: whose hidden states are answered too; 0 is the embedding.
    """

    def __init__(self, model: Any, directory: Path, max_bytes: int, layers: Sequence[int] = ()) -> None:
        self._model, self._directory, self._layers = model, directory, list(layers)
        directory.mkdir(parents=True, exist_ok=True)
        self._left = max_bytes - sum(path.stat().st_size for path in directory.iterdir())
        self._keeps_logits: bool | None = None

    def answer(self, row: int, ids: NDArray[np.int64]) -> Answer:
        """To row number `row`, ids int64 [tokens]."""
        path = self._directory / f"{row}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return self._restored({name: torch.from_numpy(kept[name]) for name in kept.files})
        read, logits, hidden = self._computed(ids)
        if self._keeps_logits is None:
            self._keeps_logits = not torch.equal(self._head(read), logits)
        arrays = {"logits": logits} if self._keeps_logits else {"read": read}
        if hidden is not None:
            arrays["hidden"] = hidden
        size = sum(array.nbytes for array in arrays.values())
        if size <= self._left:
            self._left -= size
            _write(path, {name: array.cpu().numpy() for name, array in arrays.items()})
        return Answer(logits, hidden)

    def _restored(self, kept: dict[str, Tensor]) -> Answer:
        kept = {name: array.to(self._model.device) for name, array in kept.items()}
        return Answer(kept["logits"] if "logits" in kept else self._head(kept["read"]), kept.get("hidden"))

    @torch.no_grad()
    def _head(self, read: Tensor) -> Tensor:
        return self._model.get_output_embeddings()(read[None])[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _computed(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        with _head_input(self._model) as seen:
            found = self._model(
                torch.from_numpy(ids[None]).to(self._model.device),
                use_cache=False,
                output_hidden_states=bool(self._layers),
            )
        hidden = torch.stack([found.hidden_states[layer][0] for layer in self._layers]) if self._layers else None
        return seen[0][0], found.logits[0], hidden


@contextlib.contextmanager
def _head_input(model: Any) -> Iterator[list[Tensor]]:
    seen = list[Tensor]()
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _write(path: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)  # noqa: PTH105 - atomic
