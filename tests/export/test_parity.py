"""The parity gate: a graph that answers otherwise is not published, and the layer at fault is named."""

import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import write_checkpoint

import piston.export
from piston.core.errors import ParityError
from piston.export import ExportOptions, export_model, parity
from piston.export.parity import Reference, Row


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def _traced_once(one_trace):
    """What breaks an export here comes after the trace."""
    with one_trace():
        yield


@pytest.fixture
def broken(monkeypatch):
    """Scale one weight of the written graph, as a faulty pass would."""

    def install(name, factor):
        from piston.export import job

        honest = job.canonicalize

        def canonicalize(model, stack=""):
            honest(model, stack)
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(value.const_value.numpy() * factor, name=name)

        monkeypatch.setattr(job, "canonicalize", canonicalize)

    return install


@pytest.mark.parametrize(
    ("weight", "blamed"),
    [
        ("model.layers.0.mlp.down_proj.weight", "layer 0"),
        ("model.layers.1.self_attn.k_proj.weight", "layer 1"),
        ("model.layers.1.input_layernorm.weight", "layer 1"),
        ("lm_head.weight", "after the last one"),
    ],
)
def test_a_wrong_scale_fails_the_export_and_names_the_layer(checkpoint, tmp_path, broken, weight, blamed):
    broken(weight, 1.02)
    with pytest.raises(ParityError, match=blamed):
        export_model(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_within_the_bound_passes(checkpoint, tmp_path, broken):
    broken("lm_head.weight", 1 + 1e-6)
    manifest = export_model(checkpoint, tmp_path / "out")
    assert manifest.made_by["parity"]["max_abs"] <= manifest.made_by["parity"]["bound"]


def test_without_the_gate_the_manifest_says_so(checkpoint, tmp_path, broken):
    broken("lm_head.weight", 1.02)
    manifest = export_model(checkpoint, tmp_path / "out", ExportOptions(check_parity=False))
    assert manifest.made_by["parity"] is None


def test_the_gate_is_on_by_default():
    assert piston.export.ExportOptions().check_parity


class ShiftedEngine:
    """Gives a reference's own logits, moved by `shift`; stands in for the engine of the written graph."""

    def __init__(self, rows, shift):
        self.rows, self.shift, self.said, self.closed = rows, shift, 0, False
        self.cache = self

    def admit(self):
        self.said += 1
        return self.said - 1

    def prefill(self, slot, prompt):
        self.step_of = 0
        return (self.rows[slot].logits[0] + self.shift)[None]

    def step(self, tokens):
        self.step_of += 1
        return {slot: self.rows[slot].logits[self.step_of] + self.shift for slot in tokens}

    def close(self):
        self.closed = True


def compare(monkeypatch, logits, shift):
    rows = [Row([1], logits.argmax(axis=-1).tolist(), logits)] * 3
    engine = ShiftedEngine(rows, np.array(shift, np.float32))
    monkeypatch.setattr(parity.OrtEngine, "open", lambda *_, **__: engine)
    monkeypatch.setattr(parity, "_blame", lambda *_: "")
    try:
        return parity.check_parity(None, None, Reference(rows, []))
    finally:
        assert engine.closed


def test_two_top_logits_that_are_equal_may_change_places(monkeypatch):
    tied = np.array([[5.0, 5.0, 1.0]] * 3, np.float32)
    assert compare(monkeypatch, tied, [0.0, 1e-4, 0.0]).max_abs == pytest.approx(1e-4, rel=0.01)


def test_another_token_than_one_that_leads_by_more_than_the_bound_is_refused(monkeypatch):
    led = np.array([[5.0012, 5.0, 1.0]] * 3, np.float32)  # by 0.0012, the bound is 0.001
    with pytest.raises(ParityError):
        compare(monkeypatch, led, [-9e-4, 9e-4, 0.0])


def test_the_engine_is_closed_whatever_goes_wrong(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(ShiftedEngine, "step", fail)
    with pytest.raises(MemoryError):
        compare(monkeypatch, np.array([[5.0, 4.0]] * 3, np.float32), [0.0, 0.0])
