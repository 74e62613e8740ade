import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.core.bundle.onnx_header import OnnxHeader, TensorInfo
from piston.core.errors import BundleCorruptError

onnx = pytest.importorskip("onnx")


def model(**options):
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    codes = onnx.numpy_helper.from_array(np.ones(5, np.int8), "codes")
    make = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        onnx.helper.make_node("Relu", ["y"], ["z"]),
        onnx.helper.make_node("Gelu", ["z"], ["out"], domain="com.microsoft"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [make("x", 1, ["batch", None, 4])], [make("out", 10, [2, 3])], [weight, codes]
    )
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=10, **options)


WHOLE = model().SerializeToString()


def header(data):
    return OnnxHeader.parse(memoryview(data))


def test_the_facts_are_those_that_were_written():
    found = header(WHOLE)
    assert (found.ir_version, found.producer) == (10, "tests")
    assert found.opsets == {"": 24, "com.microsoft": 1}
    assert found.operators == {"MatMul": 1, "Relu": 1, "com.microsoft::Gelu": 1}
    assert found.inputs == (TensorInfo("x", "float32", ("batch", "?", 4)),)
    assert found.outputs == (TensorInfo("out", "float16", (2, 3)),)
    assert (found.weights, found.num_weights, found.external_files) == ({"float32": 48, "int8": 5}, 2, ())


def test_external_weights_are_counted_and_their_file_is_named(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = OnnxHeader.read(tmp_path / "m.onnx")
    assert (found.weights, found.external_files) == ({"float32": 48, "int8": 5}, ("m.data",))


@given(st.binary(max_size=200))
def test_no_bytes_are_anything_but_a_model_or_refused(data):
    with pytest.raises(BundleCorruptError):
        header(data)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(place, byte):
    changed = bytearray(WHOLE)
    changed[place] = byte
    try:
        header(bytes(changed))
    except BundleCorruptError as problem:
        assert "not an ONNX model" in str(problem)  # noqa: PT017 - either outcome is right


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_short_never_passes_for_more_than_it_holds(length):
    try:
        found = header(WHOLE[:length])
    except BundleCorruptError:
        return
    assert sum(found.weights.values()) <= 53


@pytest.mark.parametrize("content", [b"", b"not a graph", WHOLE[:-20]])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"x\.onnx"):
        OnnxHeader.read(tmp_path / "x.onnx")
