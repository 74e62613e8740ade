"""Measures a prepared encoder with some of its linears in integers against the float model.

On rows of tokens as the check of a calibration does, and on labelled examples where the bound is about those.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from piston.calibration.float_graph import ModelGraph
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.switched import NAME, Switches, write_switched
from piston.core.console import Progress
from piston.core.tasks import task_module
from piston.data.packing import Ids
from piston.data.rows import hash_rows
from piston.evaluation import tasks
from piston.evaluation.encoders import Array, model_of, open_directory, row_outputs, with_changes
from piston.runtime.backends.session import OrtOptions, OrtSession, open_session
from piston.runtime.bundle import Bundle


class EncoderMeter:
    """The prepared model, open. The float model has read each text once and is gone before the other is opened.

    Args:
        graph: of the float model.
        prepared: what each linear would become.
        directory: the prepared float model directory; a graph is written into it.
        texts: all rows [rows, tokens] that will be measured on.
        labelled: examples that figures are measured on besides, if any.
    """

    def __init__(
        self, graph: ModelGraph, prepared: Prepared, directory: Path, texts: Sequence[Ids], labelled: Path | None
    ) -> None:
        self._task: Any = task_module(tasks, graph.manifest.task)
        self._labelled = labelled
        self._quiet = Progress(quiet=True)
        with closing(open_directory(graph.directory)) as reference:
            self._expected: dict[str, list[Array]] = {
                hash_rows(rows): row_outputs(reference, rows, self._quiet) for rows in texts
            }
            self._quality = {} if labelled is None else dict(self._task.quality(reference, labelled))
        write_switched(directory, prepared, {}, graph.manifest.cache)
        options = OrtOptions(optimize=True, prepack=False)  # weights are given with every run
        self._session = OrtSession(open_session(directory / NAME, options))
        self._model = model_of(Bundle.open(graph.directory, verify=False), self._session)
        self._switches = Switches(prepared, graph.linears)

    def figures(self, quantized: Iterable[str], rows: Ids) -> dict[str, float]:
        """What `piston calibrate` measures of the task, on one of the texts with these linears in integers."""
        self._switches.quantize(quantized)
        self._session.fixed = self._switches.fed
        found = row_outputs(self._model, rows, self._quiet)
        values: dict[str, float] = dict(self._task.moved(found, self._expected[hash_rows(rows)]).values)
        return values

    def quality(self) -> dict[str, float]:
        """Figures on the labelled examples of what `figures` measured last, with their changes from the float model."""
        if self._labelled is None:
            return {}
        return with_changes(self._task.quality(self._model, self._labelled), self._quality)

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()
