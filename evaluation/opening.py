"""Model directories of tasks that have figures of their own, opened as `piston.runtime.load` opens their bundles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.evaluation import encoder_decoders, encoders
from piston.evaluation.tasks import TaskModel
from piston.runtime.encoder import EncoderModel

SOURCE, SLOTS = 512, 8  # positions of a text, at most, and texts that are answered together


def open_model_directory(path: Path, *, threads: int = 0, max_length: int | None = None) -> TaskModel:
    """The canonical graphs of a model directory, as they are, on ONNX Runtime; raises as `piston.runtime.load` does.

    `max_length` are the tokens of a text, and of an encoder-decoder's answer; by default as many as the model has, and
    of encoder-decoders SOURCE and LONGEST at most.
    """
    manifest = Manifest.read(path)
    positions = manifest.model.max_positions
    if max_length is not None and not 2 <= max_length <= positions:  # noqa: PLR2004
        raise MisuseError(f"max_length is {max_length}; {path} takes 2 to {positions} tokens.")
    if DECODER not in manifest.graphs:
        return encoders.open_directory(path, max_length=max_length, threads=threads)
    return encoder_decoders.open_model(
        path,
        capacity=encoder_decoders.LONGEST if max_length is None else max_length,
        max_source=min(SOURCE, positions) if max_length is None else max_length,
        num_slots=1 if manifest.cross.num_positions else SLOTS,
        threads=threads,
    )


def read_alike(candidate: TaskModel, reference: TaskModel, tell: Callable[[str], None]) -> None:
    """Let both models read as many tokens of a text as the one that reads fewer, so that they are given the same.

    A bundle may be built for shorter texts than its model; `tell` gets what to say where it is.
    """
    if isinstance(candidate, EncoderModel) and isinstance(reference, EncoderModel):
        limits = candidate.max_length, reference.max_length
        candidate.max_length = reference.max_length = min(limits)
    else:
        engines: list[Any] = [getattr(model, "engine", None) for model in (candidate, reference)]
        if not all(hasattr(engine, "max_source") for engine in engines):
            return
        limits = engines[0].max_source, engines[1].max_source
        engines[0].max_source = engines[1].max_source = min(limits)
    if limits[0] != limits[1]:
        tell(f"Both models are given the first {min(limits):,} tokens of a text: one of them reads no more.")
