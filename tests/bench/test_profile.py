import json

import numpy as np
import pytest

from piston.bench.limits import Limits, measure_limits
from piston.bench.profile import _bits_of, _phase, runs_of
from piston.bench.roofline import profile_lines
from piston.bench.tiny_onnx import matmul_integer

LIMITS = Limits(read_bytes_per_s=1e9, float_ops_per_s=1e9, int8_ops_per_s=1e10, how="by hand")
EIGHT = _bits_of("w8", "int8")


def node(op, micros, at, inputs, outputs, name="n", **sizes):
    args = {"op_name": op, "input_type_shape": inputs, "output_type_shape": outputs}
    args |= {f"{what}_size": str(size) for what, size in sizes.items()}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": micros, "args": args}


def model_run(at, micros):
    return {"cat": "Session", "name": "model_run", "ts": at, "dur": micros, "args": {}}


# Two runs of one session: a float product whose weights are packed away, then an addition.
EVENTS = [
    model_run(0, 100),
    node("MatMul", 60, 10, [{"float": [1, 4, 8]}], [{"float": [1, 4, 16]}], activation=128, output=256),
    node("Add", 20, 75, [{"float": [4]}, {"float": [4]}], [{"float": [4]}], activation=32, output=16),
    model_run(200, 80),
    node("MatMul", 40, 210, [{"float": [1, 4, 8]}], [{"float": [1, 4, 16]}], activation=128, output=256),
]


def test_nodes_belong_to_the_run_they_ended_in():
    runs = runs_of(EVENTS, EIGHT)
    assert [(run.start, run.seconds) for run in runs] == [(0, pytest.approx(1e-4)), (200, pytest.approx(8e-5))]
    assert [[item.op for item in run.nodes] for run in runs] == [["MatMul", "Add"], ["MatMul"]]


def test_a_product_costs_two_operations_an_element_and_reads_the_weights_the_profile_does_not_show():
    product = runs_of(EVENTS, EIGHT)[0].nodes[0]
    assert product.num_ops == 2 * 4 * 8 * 16
    assert product.num_bytes == 128 + 256 + 8 * 16 * 4


def test_the_second_matrix_of_a_product_of_activations_is_not_counted_twice():
    both = [{"float": [1, 4, 8]}, {"float": [1, 8, 16]}]
    events = [node("MatMul", 1, 0, both, [{"float": [1, 4, 16]}], activation=640, output=256), model_run(0, 2)]
    assert runs_of(events, EIGHT)[0].nodes[0].num_bytes == 640 + 256


def test_a_product_of_no_rows_reads_no_weights():
    """A prefill whose logits nobody wants still runs the node of the vocabulary."""
    events = [node("MatMulNBits", 1, 0, [{"float": [1, 0, 64]}], [{"float": [1, 0, 32]}]), model_run(0, 2)]
    (found,) = runs_of(events, EIGHT)[0].nodes
    assert (found.num_bytes, found.num_ops) == (0, 0)


def test_weights_the_profile_does_show_are_not_counted_again_and_a_gated_product_is_two():
    events = [
        node("GatedLinear", 1, 0, [{"uint8": [1, 64]}, {"int8": [4096]}], [{"float": [1, 32]}], parameter=4096),
        model_run(0, 2),
    ]
    (found,) = runs_of(events, EIGHT)[0].nodes
    assert (found.num_bytes, found.num_ops) == (4096, 2 * 2 * 64 * 32)


@pytest.mark.parametrize("op", ["GatedLinearCodes", "SplitGatedBlockLinear"])
def test_what_a_gated_product_gives_beside_its_result_is_no_product(op):
    shapes = [{"uint8": [1, 64]}, {"int8": [4096]}], [{"uint8": [1, 32]}, {"float": [1, 3]}, {"uint8": [1, 32]}]
    (found,) = runs_of([node(op, 1, 0, *shapes, parameter=4096), model_run(0, 2)], EIGHT)[0].nodes
    assert found.num_ops == 2 * 2 * 64 * 32


@pytest.mark.parametrize(
    ("scheme", "lm_head", "name", "bits"),
    [
        ("w4", "int8", "lm_head/MatMulNBits", 8),
        ("w4", "int8", "layers.0", 4),
        ("w4", None, "lm_head/x", 4),
        ("w8", None, "layers.0", 8),
    ],
)
def test_packed_integers_are_as_wide_as_the_scheme_says(scheme, lm_head, name, bits):
    events = [node("MatMulNBits", 1, 0, [{"float": [1, 64]}], [{"float": [1, 32]}], name=name), model_run(0, 2)]
    (run,) = runs_of(events, _bits_of(scheme, lm_head))
    assert run.nodes[0].num_bytes == 64 * 32 * bits // 8


def test_of_a_table_only_the_rows_that_were_read_count():
    table = [{"float": [50_000, 576]}, {"int64": [1, 1]}]
    events = [
        node("Gather", 1, 0, table, [{"float": [1, 1, 576]}], parameter=115_200_000, activation=8, output=2304),
        model_run(0, 2),
    ]
    assert runs_of(events, EIGHT)[0].nodes[0].num_bytes == 2 * 2304


def test_a_step_is_the_mean_of_its_runs_and_its_limit_the_slower_of_memory_and_arithmetic():
    phase = _phase("decode", runs_of(EVENTS, EIGHT), 1, 2, LIMITS)
    product, addition = phase.operators
    assert phase.seconds == pytest.approx((100e-6 + 80e-6) / 2)
    assert (product.op, product.calls, product.seconds) == ("MatMul", 1, pytest.approx(50e-6))
    assert product.limit == pytest.approx(max((128 + 256 + 512) / 1e9, 1024 / 1e9))
    assert (addition.calls, addition.seconds) == (0.5, pytest.approx(10e-6))


def test_the_written_graph_is_onnx_and_multiplies_integers():
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 127, (300, 7), np.int8)
    model = onnx.load_from_string(matmul_integer(weight))
    onnx.checker.check_model(model, full_check=True)
    left = rng.integers(0, 255, (5, 300), np.uint8)
    (found,) = reference.ReferenceEvaluator(model).run(None, {"a": left})
    np.testing.assert_array_equal(found, left.astype(np.int32) @ weight.astype(np.int32))


def test_onnx_runtime_takes_the_written_graph():
    onnxruntime = pytest.importorskip("onnxruntime")
    weight = np.eye(4, dtype=np.int8)
    session = onnxruntime.InferenceSession(matmul_integer(weight), providers=["CPUExecutionProvider"])
    left = np.arange(8, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(session.run(None, {"a": left})[0], left)


def test_limits_are_measured_and_say_how(monkeypatch):
    monkeypatch.setattr("piston.bench.limits._READ_BYTES", 2**20)
    monkeypatch.setattr("piston.bench.limits._SIDE", 32)
    found = measure_limits(1)
    assert min(found.read_bytes_per_s, found.float_ops_per_s) > 0
    assert "32 x 32" in found.how


@pytest.mark.parametrize("phase_seconds", [90e-6, 200e-6])
def test_the_table_accounts_for_the_whole_step(phase_seconds):
    runs = runs_of([model_run(0, phase_seconds * 1e6), *EVENTS[1:3]], EIGHT)
    from piston.bench.profile import Profile

    lines = list(profile_lines(Profile(limits=LIMITS, phases=(_phase("decode", runs, 1, 1, LIMITS),))))
    shares = [
        float(line.split("%")[0].split()[-1]) for line in lines if "%" in line and "of the limit" not in line[:40]
    ]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_events_survive_as_json():
    assert runs_of(json.loads(json.dumps(EVENTS)), EIGHT) == runs_of(EVENTS, EIGHT)
