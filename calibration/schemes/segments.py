"""A canonical graph cut where its linears read: run piece by piece, all rows through one before the next begins.

Two streams run side by side: the float model's values, and those of the model whose linears so far are quantized, with
activations rounded as `ort-cpu` rounds them. What is alive at a cut lies on disk, a file for each row, so that memory
grows neither with rows nor with layers.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import Linear, by_input, by_weight, find_linears
from piston.calibration.graph.qdq import write_weight
from piston.calibration.observe.inputs import RowsLike, inputs_of
from piston.calibration.observe.row_files import RowFiles
from piston.calibration.schemes.channel_splitting import num_copies, read_copies
from piston.calibration.schemes.gptq_checkpoint import RoundedGroup
from piston.calibration.schemes.ordered_pool import imap_bounded
from piston.core.errors import MisuseError
from piston.core.machine import num_cores
from piston.graph.rounding import Floats
from piston.runtime.backends.buffers import step_feed
from piston.runtime.backends.session import translated

Stream = Literal["float", "quantized"]
STREAMS: tuple[Stream, Stream] = ("float", "quantized")
Values = dict[str, NDArray[Any]]
MOST_AT_ONCE = 8  # rows: cores wait for each other less than if all work on one


@dataclass(frozen=True, slots=True)
class Segment:
    """The nodes between two cuts: `inputs` are alive at the first, `outputs` are computed here and alive at the second.

    `group` reads `reads`, one of the outputs.
    """

    reads: str
    group: list[Linear]
    inputs: list[str]
    outputs: list[str]
    alive: frozenset[str]  # at the second cut


def cut(graph: ir.Graph, groups: Mapping[str, list[Linear]]) -> list[Segment]:
    """One segment for each group of linears, in the order of the graph; what is behind the last cut is not run."""
    made, last = _spans(graph)
    segments, before = list[Segment](), -1
    for reads in sorted(groups, key=lambda name: made[name]):
        place = made[reads]
        alive = frozenset(name for name, at in made.items() if at <= place < last.get(name, -1))
        inputs = [name for name, at in made.items() if at <= before and _is_read(last, name, before)]
        segments.append(
            Segment(
                reads, groups[reads], inputs, [name for name in made if name in alive and made[name] > before], alive
            )
        )
        before = place
    return segments


def check_unshared(graph: ModelGraph, method: str, remedy: str) -> None:
    """Refuse weights that several layers share: one cannot make up for what went before each of its layers."""
    shared = next((linears[0] for linears in by_weight(graph.linears).values() if len(linears) > 1), None)
    if shared is not None:
        raise MisuseError(
            f"{graph.manifest.model.name} shares weights between its layers ({shared.name}), and {method} changes "
            f"each by what the layers before it give; {remedy}."
        )


class StreamedModel:
    """Carries rows of token ids from cut to cut.

    Args:
        graph: in float; its weights are read and never changed.
        rows: token ids [rows, tokens], each from position 0, or other inputs.
        work: a directory for what is alive; removed by `close`.
    """

    def __init__(self, graph: ModelGraph, rows: RowsLike, work: Path) -> None:
        self.graph = graph
        self.rows = inputs_of(rows)
        self.work = work
        self._files = RowFiles(work)
        self.rounded: dict[str, RoundedGroup] = {}  # of the quantized stream so far, by what the linears read
        self.replaced: dict[str, Floats] = {}  # weights in float that the quantized stream has instead, by linear
        values = (value.name or "" for node in graph.model.graph for value in node.outputs)
        self._places = {name: place for place, name in enumerate(values)}  # values may have any name, files not

    def run(self, segment: Segment) -> Iterator[dict[Stream, Floats]]:
        """Bring every row to the segment's cut; yields what the group reads there, in both streams."""
        opened = {stream: self._open(segment, stream) for stream in STREAMS}

        def run_row(index: int) -> dict[Stream, Floats]:
            return {stream: self._run_row(segment, stream, index, *opened[stream]) for stream in STREAMS}

        return imap_bounded(run_row, len(self.rows), threads=min(MOST_AT_ONCE, num_cores()))

    def leave(self, segment: Segment) -> None:
        """Forget what is not alive behind the segment's cut; until then it can be run again."""
        for index in range(len(self.rows)):
            for stream in STREAMS:
                for name in set(segment.inputs) - segment.alive:
                    self._files.drop(self._key(stream, index, name))

    def close(self) -> None:
        """Remove what was on disk."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _run_row(self, segment: Segment, stream: Stream, index: int, inputs: list[str], session: Any) -> Floats:
        """Bring one row to the cut, and keep there what is alive; returns what the group reads, [1, tokens, K]."""
        kept = [name for name in inputs if name in segment.inputs]
        alive = {name: self._files.load(self._key(stream, index, name)) for name in kept}
        feed = alive | self._graph_inputs(index, [name for name in inputs if name not in alive])
        with translated("running a calibration row"):
            values: Values = dict(zip(segment.outputs, session.run(segment.outputs, feed), strict=True))
        for name, value in values.items():
            self._files.save(self._key(stream, index, name), value)
        return values[segment.reads]

    def _open(self, segment: Segment, stream: Stream) -> tuple[list[str], Any]:
        """Names of the inputs that are used, and the session."""
        names = [value.name or "" for value in self.graph.model.graph.inputs]
        part = ir.convenience.extract(self.graph.model.graph, [*segment.inputs, *names], segment.outputs)
        used = {value.name for node in part for value in node.inputs if value is not None}
        for value in [value for value in part.inputs if value.name not in used]:
            part.inputs.remove(value)
        model = ir.Model(
            part, ir_version=self.graph.model.ir_version, functions=tuple(self.graph.model.functions.values())
        )
        if stream == "quantized":
            linears = find_linears(model)
            for linear in linears:
                if linear.name in self.replaced:
                    linear.weight.const_value = ir.tensor(self.replaced[linear.name], name=linear.weight.name)
            for reads, group in by_input(linears).items():
                if reads in self.rounded:
                    _quantize(group, self.rounded[reads])
        return [value.name or "" for value in part.inputs], _session(model, self.graph.directory)

    def _graph_inputs(self, index: int, names: list[str]) -> Values:
        row, states = self.rows.tokens(index), {state.input: state for state in self.graph.manifest.cache.states}
        ready: Values = {} if row is None else {**step_feed(row)}
        ready |= self.rows.others(index, names)
        length = 0 if row is None else len(row)
        return {
            name: np.zeros(states[name].sizes(1, length), np.float32) if name in states else ready[name]
            for name in names
        }

    def _key(self, stream: Stream, index: int, name: str) -> str:
        return f"{stream}-{index}-{self._places[name]}"


def _spans(graph: ir.Graph) -> tuple[dict[str, int], dict[str, int]]:
    """Name of each computed value -> place of the node that makes it, and of the last that reads it."""
    made: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, node in enumerate(graph):
        made |= {value.name or "": place for value in node.outputs}
        last |= {value.name or "": place for value in node.inputs if value is not None}
    return made, last


def _is_read(last: Mapping[str, int], name: str, place: int) -> bool:
    return last.get(name, -1) > place


def _quantize(group: Sequence[Linear], rounded: RoundedGroup) -> None:
    """The same values from codes; the split is applied to what the group reads, and not to what makes that."""
    graph = group[0].matmul.graph
    assert isinstance(graph, ir.Graph)
    group = [linear for linear in group if linear.name in rounded.weights]
    factors = num_copies(rounded.source)
    if len(rounded.source) > len(factors):
        read_copies(group, rounded.source, factors)
    for linear in group:
        write_weight(graph, linear.weight.name or "", rounded.weights[linear.name])


def _session(model: ir.Model, folder: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = False
    settings.intra_op_num_threads = math.ceil(num_cores() / MOST_AT_ONCE)  # no core idle
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # numpy works in between
    # The level at which DequantizeLinear and MatMul become one MatMulNBits, here with activations in eight bits.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    with translated("loading a part of the graph"):
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
