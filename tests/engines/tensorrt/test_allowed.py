import numpy as np
import pytest
from onnx_text import parse

from piston.core.errors import EngineError
from piston.engines.tensorrt.allowed import check_file

QUANTIZED = """g (float[a, 4] x) => (float[a, 4] y) {
    q = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (q, scale, zero)
}"""


def refused(text, **weights):
    model = parse(text, **weights)
    for node in model.graph:
        node.name = f"the/{node.op_type}"
    with pytest.raises(EngineError) as caught:
        check_file(model.graph)
    return str(caught.value)


def test_an_operator_of_another_domain_is_refused():
    text = "g (float[a, 4] x) => (float[a, 4] y) { y = com.microsoft.Gelu (x) }"
    assert refused(text) == "the/Gelu is a com.microsoft::Gelu, which TensorRT is not known to run."


def test_an_attribute_that_would_be_ignored_is_refused():
    text = "g (float[a, 4] x) => (float[a, 4] v, int64[a, 4] i) { v, i = TopK <largest = 0> (x, k) }"
    assert "the/TopK (TopK) has the attribute largest, which TensorRT would ignore" in refused(text, k=np.array([4]))


@pytest.mark.parametrize(
    ("scale", "zero", "reason"), [(0.1, 3, "zero points of 0"), (0.0, 0, "scales above 0"), (-1.0, 0, "scales above 0")]
)
def test_what_is_not_symmetric_is_refused(scale, zero, reason):
    assert f"the/QuantizeLinear (QuantizeLinear) has not {reason}" in refused(
        QUANTIZED, scale=np.float32(scale), zero=np.int8(zero)
    )


def test_every_file_of_a_toy_is_allowed(lowered_toy):
    lowered_toy("llama", "w8a8")  # write_lowered checks
