"""Run a canonical model over calibration rows and feed chosen inner values to consumers, a chunk at a time.

Nothing of a row is kept but what consumers keep: memory does not grow with the number of rows.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.observe.activation_capture import ActivationCapture, opened
from piston.calibration.observe.checkpoint_file import ProgressFile, key_of
from piston.calibration.observe.consumers import Consumer
from piston.calibration.observe.interrupt import Interrupt, deferred_interrupt
from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import Manifest, sha256_of
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.data.arrays import hash_feeds
from piston.data.rows import hash_rows

Ids = NDArray[np.int64]
# Rows [rows, tokens] of token ids, or of a module of one's own its inputs by name, as often as it is run.
Samples = Ids | Sequence[Mapping[str, NDArray[Any]]]


def collect(
    model_dir: Path,
    rows: Samples,
    consumers: Mapping[str, Consumer],
    *,
    work_dir: Path | None = None,
    progress: Progress | None = None,
    name: str = "calibrating",
) -> None:
    """Feed the inner values named by `consumers` over all `rows`, those of token ids each from position 0.

    A value's arrays come in order, float32 [1, tokens of a chunk, ...], or of a module as they are. With a work
    directory an interrupted run goes on where it stopped when it is called again with the same model, rows and kinds of
    consumers, and ends with exactly the states of a run that was never interrupted. Ctrl-C is taken between rows.

    Args:
        model_dir: with a manifest; its files are taken for what the manifest records.
        rows: token ids, no longer than the model's positions; or the inputs of a module.
        consumers: by name of an inner value, such as `Linear.input_name`; fresh ones.
        work_dir: where to keep the state of an unfinished run.
        progress: shows rows done.
        name: of the work, as shown.

    Raises:
        MisuseError: a name is no inner float value, or rows are longer than the model's positions.
        CalibrationError: a value is not finite (raised by observers, naming it).
        EngineError: ONNX Runtime fails.
    """
    manifest, progress = Manifest.read(model_dir), progress or Progress(quiet=True)
    _check(rows, manifest)
    file = ProgressFile(work_dir, _key(model_dir, manifest, rows, consumers))
    done, states = file.load()
    for value, state in states.items():
        consumers[value].restore(state)
    with (
        opened(model_dir / GRAPH, manifest.cache, tuple(consumers), _capacity(rows)) as graph,
        deferred_interrupt() as interrupt,
        progress.phase(name),
    ):
        progress.step(name, done, len(rows))
        for index in range(done, len(rows)):
            _run_row(graph, rows[index], consumers)
            progress.step(name, index + 1, len(rows))
            if index + 1 < len(rows):
                _keep(file, index + 1, consumers, interrupt)
    file.remove()


def _run_row(
    graph: ActivationCapture, row: Ids | Mapping[str, NDArray[Any]], consumers: Mapping[str, Consumer]
) -> None:
    for arrays in [graph.run_feeds(row)] if isinstance(row, Mapping) else graph.run(row):
        for name in list(arrays):
            consumers[name].update(arrays.pop(name))  # popped: freed before the next chunk is computed


def _keep(file: ProgressFile, done: int, consumers: Mapping[str, Consumer], interrupt: Interrupt) -> None:
    if interrupt.is_requested or file.is_due:
        file.save(done, {name: consumer.state() for name, consumer in consumers.items()})
    if interrupt.is_requested:
        raise KeyboardInterrupt


def _capacity(rows: Samples) -> int:
    """Positions of a row; a module has none."""
    return int(rows.shape[1]) if isinstance(rows, np.ndarray) else 1


def _check(rows: Samples, manifest: Manifest) -> None:
    if not isinstance(rows, np.ndarray):
        return
    positions = manifest.model.max_positions
    if rows.ndim != 2 or not rows.size:  # noqa: PLR2004
        raise MisuseError(f"Calibration rows have shape {list(rows.shape)}; they must be [rows, tokens], not empty.")
    if rows.shape[1] > positions:
        raise MisuseError(
            f"Calibration rows have {rows.shape[1]:,} tokens; {manifest.model.name} takes up to {positions:,}."
        )


def _key(model_dir: Path, manifest: Manifest, rows: Samples, consumers: Mapping[str, Consumer]) -> str:
    settings: dict[str, Any] = {
        "versions": {package: version(package) for package in ("piston", "onnxruntime")},
        "graph": sha256_of(model_dir / GRAPH),  # small; weights are what the manifest says
        "files": {name: record.sha256 for name, record in manifest.files.items()},
        "rows": hash_rows(rows) if isinstance(rows, np.ndarray) else hash_feeds(rows),
        "consumers": {name: consumer.kind for name, consumer in consumers.items()},
    }
    return key_of(settings)
