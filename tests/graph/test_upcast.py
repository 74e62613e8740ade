import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_untouched, operators, parse, run

from piston.graph.upcast import Float32Pass

TEXT = """
g ({dtype}[batch, 4] x) => (float[batch, 3] logits, {dtype}[batch, 4] present)
{{
    wide = Cast <to = 1> (x)
    doubled = Add (wide, wide)
    narrow = Cast <to = {code}> (doubled)
    shape = Shape (narrow)
    ones = ConstantOfShape <value = {dtype}[1] {{{one}}}> (shape)
    present = Add (narrow, ones)
    product = MatMul (present, weight)
    logits = Cast <to = 1> (product)
}}
"""
# name: (its code in ONNX, the bits of 1.0, its numpy type)
NARROW = {"bfloat16": (16, 0x3F80, ml_dtypes.bfloat16), "float16": (10, 0x3C00, np.float16)}


def narrow_model(dtype):
    code, one, numpy_type = NARROW[dtype]
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(numpy_type)
    return parse(TEXT.format(dtype=dtype, code=code, one=one), weight=weight), weight.astype(np.float32)


@pytest.mark.parametrize("dtype", NARROW)
def test_everything_is_computed_in_float32_from_the_values_there_were(dtype):
    model, weight = narrow_model(dtype)
    assert Float32Pass()(model).modified
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    outputs = run(model, {"x": x})
    np.testing.assert_allclose(outputs["present"], 2 * x + 1, rtol=1e-6)
    np.testing.assert_allclose(outputs["logits"], (2 * x + 1) @ weight, rtol=1e-5)


@pytest.mark.parametrize("dtype", NARROW)
def test_casts_to_the_type_there_is_are_gone(dtype):
    model, _ = narrow_model(dtype)
    Float32Pass()(model)
    assert "Cast" not in operators(model)
    assert [value.name for value in model.graph.outputs] == ["logits", "present"]
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}


def test_weights_are_widened_when_they_are_read_and_not_kept():
    model, weight = narrow_model("bfloat16")
    Float32Pass()(model)
    tensor = model.graph.initializers["weight"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert not tensor.cache
    np.testing.assert_array_equal(tensor.numpy(), weight)


def test_casts_of_integers_stay():
    model = parse("g (int64[a] x) => (float[a] y) { z = Cast <to = 1> (x) y = Neg (z) }")
    assert_untouched(model, Float32Pass())


def test_a_narrow_value_that_is_left_fails_the_postcondition():
    model, _ = narrow_model("float16")
    with pytest.raises(ir.passes.PostconditionError, match="is not float32"):
        Float32Pass().ensures(model)
