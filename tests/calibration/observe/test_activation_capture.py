import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from piston.calibration.graph.linears import by_input, find_linears
from piston.calibration.observe import activation_capture as exposed
from piston.calibration.observe.activation_capture import ActivationCapture
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError

ROW = np.random.default_rng(1).integers(6, 250, 50)


def names_of(model_dir):
    return list(by_input(find_linears(ir.load(model_dir / "model.onnx"))))


def opened(model_dir, names, capacity=64):
    return ActivationCapture.open(model_dir / "model.onnx", Manifest.read(model_dir).cache, names, capacity)


def values_of(model_dir, names, row=ROW):
    parts = list(opened(model_dir, names).run(row))
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}


def reference(model_dir, names, row, tmp_path):
    """All in one step of ONNX Runtime."""
    model = ir.load(model_dir / "model.onnx")
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    ir.save(model, tmp_path / "model.onnx", external_data="data")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    size, cache = len(row), Manifest.read(model_dir).cache
    feed = {
        "input_ids": row[None],
        "position_ids": np.arange(size)[None],
        "write_indices": np.array([0]),
        "kv_lengths": np.array([size]),
        "logits_positions": np.arange(size)[None],
    } | {state.input: np.zeros(state.sizes(1, size), np.float32) for state in cache.states}
    return dict(zip(names, session.run(list(names), feed), strict=True))


@pytest.mark.parametrize("chunk", [7, 50, 256])
def test_values_in_chunks_are_those_of_the_whole_row(model_dir, monkeypatch, tmp_path, chunk):
    monkeypatch.setattr(exposed, "LONGEST_CHUNK", chunk)
    monkeypatch.setattr(exposed, "SHORTEST_CHUNK", 1)
    names = names_of(model_dir)
    expected = reference(model_dir, names, ROW, tmp_path)
    for name, array in values_of(model_dir, names).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=2e-4, rtol=1e-4, err_msg=name)


def test_a_row_does_not_see_the_one_before(model_dir):
    names = names_of(model_dir)
    graph, other = opened(model_dir, names), ROW[::-1]
    first = [part[names[-1]] for row in (ROW, other, ROW[:9]) for part in graph.run(row)]
    np.testing.assert_array_equal(first[1], values_of(model_dir, names, other)[names[-1]])
    np.testing.assert_array_equal(first[2], values_of(model_dir, names, ROW[:9])[names[-1]])


def test_what_no_value_depends_on_is_not_run(model_dir):
    model = ir.load(model_dir / "model.onnx")
    name = names_of(model_dir)[2]  # of gate_proj in layer 0
    exposed.add_outputs(model, [name])
    assert [value.name for value in model.graph.outputs] == [name, "present.0.key", "present.0.value"]
    assert not any("layers.1" in (node.name or "") or "lm_head" in (node.name or "") for node in model.graph)
    assert {value.name for value in model.graph.inputs if value.name.startswith("past.")} == {
        "past.0.key",
        "past.0.value",
    }
    assert "logits_positions" not in {value.name for value in model.graph.inputs}


def test_wide_values_make_chunks_short(model_dir, monkeypatch):
    names = names_of(model_dir)
    monkeypatch.setattr(exposed, "EXPOSED_BYTES", 40 * 4 * (2 * (3 * 64 + 112) + 64))
    assert opened(model_dir, names).chunk == 40
    assert opened(model_dir, names[:1]).chunk == 64


@pytest.mark.parametrize("name", ["nothing", "logits", "present.0.key", "input_ids", "model.norm.weight"])
def test_what_is_no_inner_value_is_refused(model_dir, name):
    with pytest.raises(MisuseError, match=f"no inner float value '{name}'"):
        opened(model_dir, [name])
