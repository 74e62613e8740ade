"""Quantized weights of a reference are dequantized once; everything else of it runs as it is written."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse

from piston.engines.equivalence import reference_options as module
from piston.engines.equivalence.reference_options import reference_options
from piston.graph.qdq import dequantize_weight, dequantized_size
from piston.runtime.backends.session import OrtOptions, open_session

# ONNX Runtime makes a Gemm of the first two where it may, and a Gelu of the others.
GRAPH = """
g (float[n, 8] x) => (float[n, 16] y)
{
    product = MatMul (x, w)
    sum = Add (product, bias)
    scaled = Div (sum, root)
    bent = Erf (scaled)
    more = Add (bent, one)
    twice = Mul (sum, more)
    y = Mul (twice, half)
}
"""
WRITTEN = ["MatMul", "Add", "Div", "Erf", "Add", "Mul", "Mul"]


@pytest.fixture
def graph():
    rng = np.random.default_rng(0)
    model = parse(
        GRAPH,
        w=np.ones((8, 16), np.float32),
        bias=rng.normal(size=16).astype(np.float32),
        root=np.array(2**0.5, np.float32),
        one=np.array(1, np.float32),
        half=np.array(0.5, np.float32),
    )
    codes, scales = rng.integers(-127, 128, (8, 16)).astype(np.int8), rng.uniform(0.01, 0.1, 16)
    dequantize_weight(model.graph, "w", codes, scales, 0)
    return model


def run(model, options, tmp_path):
    """What it computes, and the operators that ran."""
    ir.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", options)
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return found, [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]


def test_quantized_weights_are_dequantized_once(graph, tmp_path):
    options = reference_options(graph.graph)
    folding = OrtOptions(fold=options.fold, prepack=options.prepack, profile=str(tmp_path / "folded"))
    written = OrtOptions(prepack=False, profile=str(tmp_path / "written"))
    found, operators = run(graph, folding, tmp_path)
    expected, all_operators = run(graph, written, tmp_path)
    assert operators == WRITTEN
    assert all_operators == ["DequantizeLinear", *WRITTEN]
    np.testing.assert_array_equal(found, expected)


def test_large_weights_are_not_kept_in_float(graph, monkeypatch):
    assert dequantized_size(graph.graph) == 4 * 8 * 16
    monkeypatch.setattr(module, "FOLDED_MAX", 4 * 8 * 16 - 1)
    assert not reference_options(graph.graph).fold


def test_a_graph_of_floats_has_nothing_to_fold():
    assert not reference_options(parse(GRAPH, w=np.ones((8, 16), np.float32)).graph).fold
