"""Model directories of tasks that have figures of their own, opened as `piston.runtime.load` opens their bundles."""

from pathlib import Path

from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import Manifest
from piston.evaluation import encoder_decoders, encoders
from piston.evaluation.tasks import TaskModel

SOURCE, SLOTS = 512, 8  # positions of a text, at most, and texts that are answered together


def open_model_directory(path: Path) -> TaskModel:
    """The canonical graphs of a model directory, as they are, on ONNX Runtime; raises as `piston.runtime.load` does."""
    manifest = Manifest.read(path)
    if DECODER not in manifest.graphs:
        return encoders.open_directory(path)
    slots = 1 if manifest.cross.num_positions else SLOTS
    length = min(SOURCE, manifest.model.max_positions)
    return encoder_decoders.open_model(path, max_source=length, num_slots=slots)
