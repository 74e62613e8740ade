"""Carried from cut to cut, a model computes what it computes in one piece."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from piston.calibration.float_graph import ModelGraph
from piston.calibration.observe.collect import collect
from piston.calibration.schemes import segments
from piston.calibration.schemes.channel_splitting import split_largest
from piston.calibration.schemes.gptq_checkpoint import RoundedGroup
from piston.calibration.schemes.segments import StreamedModel, cut
from piston.calibration.schemes.w8a8 import weight_of
from piston.graph.rounding import Grid, round_to_nearest

ROWS = np.random.default_rng(0).integers(3, 131, (3, 12))


class Kept:
    """Every array of a value."""

    kind = "kept"

    def __init__(self):
        self.arrays = []

    def update(self, array):
        self.arrays.append(array)

    def state(self):
        return {}

    def restore(self, state):
        pass


def in_one_piece(directory, names):
    kept = {name: Kept() for name in names}
    collect(directory, ROWS, kept)
    return {name: np.concatenate(value.arrays).reshape(len(ROWS), ROWS.shape[1], -1) for name, value in kept.items()}


def test_what_linears_read_is_what_the_whole_model_gives_them(model_dir, tmp_path):
    graph = ModelGraph.open(model_dir)
    expected = in_one_piece(model_dir, graph.groups())
    relay = StreamedModel(graph, ROWS, tmp_path / "relay")
    for segment in cut(graph.model.graph, graph.groups()):
        for row, values in enumerate(relay.run(segment)):
            for stream in ("float", "quantized"):
                assert np.abs(values[stream][0] - expected[segment.reads][row]).max() < 1e-4
    assert list((tmp_path / "relay").iterdir())
    relay.close()
    assert not (tmp_path / "relay").exists()


def test_the_second_stream_has_the_weights_it_was_given(model_dir, tmp_path):
    graph = ModelGraph.open(model_dir)
    relay = StreamedModel(graph, ROWS, tmp_path / "relay")
    first, second, *_ = cut(graph.model.graph, graph.groups())
    values_of = next(linear for linear in first.group if linear.name.endswith("v_proj"))
    list(relay.run(first))
    twice = round_to_nearest(2 * weight_of(values_of), Grid(8, 16))
    relay.rounded[first.reads] = RoundedGroup({values_of.name: twice}, np.arange(values_of.shape[0]))
    # Attention sums values: twice the values, twice the sum, but for what rounding to eight bits leaves, 1/127 at most.
    for values in relay.run(second):
        assert np.abs(values["quantized"] - 2 * values["float"]).max() < 0.02 * np.abs(values["float"]).max()


def test_linears_of_the_second_stream_that_read_copies_give_what_they_gave(model_dir, tmp_path):
    """But for rounding: in the second stream what makes the values is not divided, so the relay does it."""
    graph = ModelGraph.open(model_dir)
    relay = StreamedModel(graph, ROWS, tmp_path / "relay")
    first, second, *_ = cut(graph.model.graph, graph.groups())
    list(relay.run(first))
    source = split_largest(np.arange(1.0, 65.0), 64)
    rounded = {linear.name: round_to_nearest(weight_of(linear)[source], Grid(8, 16)) for linear in first.group}
    relay.rounded[first.reads] = RoundedGroup(rounded, source)
    for values in relay.run(second):
        assert np.abs(values["quantized"] - values["float"]).max() < 0.02 * np.abs(values["float"]).max()


def test_what_is_dead_is_written_over(model_dir, tmp_path):
    """A residual stream and what is read next are alive, in two streams of three rows, after any number of layers."""
    graph = ModelGraph.open(model_dir)
    relay = StreamedModel(graph, ROWS, tmp_path / "relay")
    counts = []
    for segment in cut(graph.model.graph, graph.groups()):
        assert len(segment.alive) == 2
        list(relay.run(segment))
        relay.leave(segment)
        counts.append(len(list((tmp_path / "relay").iterdir())) / (2 * len(ROWS)))
    assert max(counts) <= 4  # both, and what they are computed from


def test_a_segment_that_was_not_left_can_be_run_again(model_dir, tmp_path):
    """From the files alone, as a process does that goes on where another was stopped."""
    graph = ModelGraph.open(model_dir)
    first, second, third, *_ = cut(graph.model.graph, graph.groups())
    relay = StreamedModel(graph, ROWS, tmp_path / "relay")
    for segment in (first, second):
        list(relay.run(segment))
        relay.leave(segment)
    whole = list(relay.run(third))
    again = StreamedModel(graph, ROWS, tmp_path / "relay")
    next(again.run(third))  # stopped after a row
    for one, other in zip(whole, StreamedModel(graph, ROWS, tmp_path / "relay").run(third), strict=True):
        assert np.array_equal(one["quantized"], other["quantized"])


def test_cuts_come_in_the_order_of_the_graph_and_cover_every_group(model_dir):
    graph = ModelGraph.open(model_dir)
    segments = cut(graph.model.graph, graph.groups())
    assert [segment.reads for segment in segments] == list(graph.groups())
    assert all(segment.reads in segment.outputs for segment in segments)


@pytest.mark.parametrize(("cores", "rows", "threads"), [(1, 1, 1), (6, 6, 1), (8, 8, 1), (12, 8, 2), (64, 8, 8)])
def test_no_core_is_idle_whatever_their_number(monkeypatch, tmp_path, cores, rows, threads):
    asked = []
    monkeypatch.setattr(segments, "num_cores", lambda: cores)
    monkeypatch.setattr(segments, "imap_bounded", lambda _work, _count, *, threads: asked.append(threads) or iter(()))
    monkeypatch.setattr(
        "onnxruntime.InferenceSession", lambda _, settings, **_given: asked.append(settings.intra_op_num_threads)
    )
    segments._session(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), tmp_path)
    monkeypatch.setattr(StreamedModel, "_open", lambda *_: ([], None))
    relay = StreamedModel.__new__(StreamedModel)
    relay.rows = ROWS
    list(relay.run(segments.Segment("x", [], [], [], frozenset())))
    assert asked == [threads, rows]
