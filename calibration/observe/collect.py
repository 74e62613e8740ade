"""Run a canonical model over calibration rows and feed chosen inner values to consumers, a chunk at a time.

Nothing of a row is kept but what consumers keep: memory does not grow with the number of rows.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.observe.activation_capture import ActivationCapture, opened
from piston.calibration.observe.checkpoint_file import ProgressFile, key_of
from piston.calibration.observe.consumers import Consumer
from piston.calibration.observe.inputs import Inputs, RowsLike, inputs_of
from piston.calibration.observe.interrupt import Interrupt, deferred_interrupt
from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import Manifest, sha256_of
from piston.core.console import Progress
from piston.core.errors import MisuseError

Ids = NDArray[np.int64]


def collect(  # noqa: PLR0913
    model_dir: Path,
    rows: RowsLike,
    consumers: Mapping[str, Consumer],
    *,
    manifest: Manifest | None = None,
    work_dir: Path | None = None,
    progress: Progress | None = None,
    name: str = "calibrating",
) -> None:
    """Feed the inner values named by `consumers` over all `rows`: token ids [rows, tokens], each from position 0.

    A value's arrays come in order, float32 [1, tokens of a chunk, ...]. With a work directory an interrupted run goes
    on where it stopped when it is called again with the same model, rows and kinds of consumers, and ends with exactly
    the states of a run that was never interrupted. Ctrl-C is taken between rows.

    Args:
        model_dir: the folder of one graph; its files are taken for what the manifest records.
        rows: token ids or other inputs; no longer than the model's positions.
        consumers: by name of an inner value, such as `Linear.input_name`; fresh ones.
        manifest: of the graph, where it is not in `model_dir`.
        work_dir: where to keep the state of an unfinished run.
        progress: shows rows done.
        name: of the work, as shown.

    Raises:
        MisuseError: a name is no inner float value, or rows are longer than the model's positions.
        CalibrationError: a value is not finite (raised by observers, naming it).
        EngineError: ONNX Runtime fails.
    """
    manifest, progress = manifest or Manifest.read(model_dir), progress or Progress(quiet=True)
    inputs = inputs_of(rows)
    _check(inputs, manifest)
    file = ProgressFile(work_dir, _key(model_dir, manifest, inputs, consumers))
    done, states = file.load()
    for value, state in states.items():
        consumers[value].restore(state)
    with (
        opened(model_dir / GRAPH, manifest.cache, tuple(consumers), inputs.longest) as graph,
        deferred_interrupt() as interrupt,
        progress.phase(name),
    ):
        progress.step(name, done, len(inputs))
        for index in range(done, len(inputs)):
            _run_row(graph, inputs, index, consumers)
            progress.step(name, index + 1, len(inputs))
            if index + 1 < len(inputs):
                _keep(file, index + 1, consumers, interrupt)
    file.remove()


def _run_row(graph: ActivationCapture, inputs: Inputs, index: int, consumers: Mapping[str, Consumer]) -> None:
    for arrays in graph.run(inputs.tokens(index), inputs.others(index, {*graph.inputs, *graph.names})):
        for name in list(arrays):
            consumers[name].update(arrays.pop(name))  # popped: freed before the next chunk is computed


def _keep(file: ProgressFile, done: int, consumers: Mapping[str, Consumer], interrupt: Interrupt) -> None:
    if interrupt.is_requested or file.is_due:
        file.save(done, {name: consumer.state() for name, consumer in consumers.items()})
    if interrupt.is_requested:
        raise KeyboardInterrupt


def _check(inputs: Inputs, manifest: Manifest) -> None:
    positions = manifest.model.max_positions
    if inputs.longest > positions:
        raise MisuseError(
            f"Calibration rows have {inputs.longest:,} tokens; {manifest.model.name} takes up to {positions:,}."
        )


def _key(model_dir: Path, manifest: Manifest, inputs: Inputs, consumers: Mapping[str, Consumer]) -> str:
    settings: dict[str, Any] = {
        "versions": {package: version(package) for package in ("piston", "onnxruntime")},
        "graph": sha256_of(model_dir / GRAPH),  # small; weights are what the manifest says
        "files": {name: record.sha256 for name, record in manifest.files.items()},
        "rows": inputs.key,
        "consumers": {name: consumer.kind for name, consumer in consumers.items()},
    }
    return key_of(settings)
