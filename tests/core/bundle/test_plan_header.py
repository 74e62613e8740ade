import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_bytes import rtx_header, rtx_plan, trt_header

from piston.core.bundle.plan_header import PlanHeader
from piston.core.errors import BundleCorruptError


def test_a_plan_of_tensorrt_rtx_tells_version_gpus_and_size():
    header = PlanHeader.parse(rtx_header(size=1234, gpus=0b0011000))
    assert (header.compiler, header.version_text) == ("tensorrt_rtx", "1.7.1.116")
    assert (header.compute_capabilities, header.size) == (("sm89", "sm120"), 1234)


def test_a_plan_of_tensorrt_tells_its_version():
    header = PlanHeader.parse(trt_header())
    assert (header.compiler, header.version_text) == ("tensorrt", "11.4.0.106")
    assert (header.compute_capabilities, header.size) == ((), None)


@pytest.mark.parametrize("data", [b"", b"vtrt", b"\x08\x07onnx" + bytes(90), b"ftrt" + bytes(59), b"VTRT" + bytes(90)])
def test_other_bytes_are_refused(data):
    with pytest.raises(BundleCorruptError, match="is not a TensorRT or TensorRT-RTX plan"):
        PlanHeader.parse(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"vtrt", b"ftrt"]))
def test_any_bytes_are_a_header_or_refused(data, tag):
    try:
        header = PlanHeader.parse(tag + data)
    except BundleCorruptError:
        return
    assert len(header.version) == 4


def test_a_file_is_read_and_one_that_is_not_there_is_told(tmp_path):
    (tmp_path / "engine.plan").write_bytes(rtx_plan())
    assert PlanHeader.read(tmp_path / "engine.plan").size == len(rtx_plan())
    with pytest.raises(BundleCorruptError, match=r"other\.plan cannot be read"):
        PlanHeader.read(tmp_path / "other.plan")


def test_a_plan_of_the_real_compiler_is_understood():
    trt = pytest.importorskip("tensorrt_rtx")
    from piston.runtime.backends.tensorrt.log import log_of

    builder = trt.Builder(log_of(trt))
    network = builder.create_network(0)
    tensor = network.add_input("x", trt.float32, (4,))
    network.mark_output(network.add_unary(tensor, trt.UnaryOperation.EXP).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = bytes(builder.build_serialized_network(network, config))
    header = PlanHeader.parse(plan)
    assert (header.compiler, header.version_text) == ("tensorrt_rtx", trt.__version__)
    assert (header.compute_capabilities, header.size) == (("sm89",), len(plan))
