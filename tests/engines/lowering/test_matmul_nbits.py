import ml_dtypes
import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, only, operators, parse, random_feed

from piston.engines.lowering.matmul_nbits import MatMulNBitsPass, packed_codes

LINEAR = """
g (float[batch, seq, {rows}] x) => (float[batch, seq, 6] y)
{{
    w = DequantizeLinear <{attributes}> (codes, scales)
    m = MatMul (x, w)
    y = Add (m, bias)
}}
"""


def model_of(rows=64, bits=8, block=32, text=LINEAR, **changes):
    """A linear layer with weights in blocks, or per channel if `block` is 0."""
    rng = np.random.default_rng(0)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    codes = rng.integers(low, high + 1, (rows, 6), np.int8)
    codes[:2] = [[low] * 6, [high] * 6]
    shape = (-(-rows // block), 6) if block else 6
    values = {
        "codes": codes.astype(np.int8 if bits == 8 else ml_dtypes.int4),
        "scales": rng.uniform(-0.03, 0.03, shape).astype(np.float32),  # GPTQ may choose negative ones
        "bias": rng.standard_normal(6).astype(np.float32),
    }
    attributes = f"axis = 0, block_size = {block}" if block else "axis = 1"
    return parse(text.format(rows=rows, attributes=attributes), **values | changes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rows", "block"), [(64, 16), (64, 32), (64, 64), (256, 128), (512, 256), (100, 32), (100, 128), (576, 128)]
)
def test_weights_in_blocks_are_packed_and_give_the_same_products(bits, rows, block):
    model = model_of(rows, bits, block)
    assert_same_outputs(model, MatMulNBitsPass(), random_feed(model, batch=2, seq=3), bound=5e-5)
    assert operators(model) == {"MatMulNBits": 1, "Add": 1}
    found = {name: attribute.value for name, attribute in only(model, "MatMulNBits").attributes.items()}
    assert found == {"K": rows, "N": 6, "bits": bits, "block_size": block, "accuracy_level": 4}


@pytest.mark.parametrize(("rows", "block"), [(128, 64), (576, 64), (96, 32), (100, 64)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_of_a_channel_is_repeated_over_blocks_that_leave_no_rest_if_any_do(bits, rows, block):
    model = model_of(rows, bits, 0)
    assert_same_outputs(model, MatMulNBitsPass(), random_feed(model, batch=2, seq=3), bound=5e-5)
    assert only(model, "MatMulNBits").attributes["block_size"].as_int() == block


def test_two_readers_of_a_weight_share_it():
    text = LINEAR.replace("y = Add (m, bias)", "n = MatMul (x, w)\n y = Add (m, n)")
    model = model_of(text=text)
    assert_same_outputs(model, MatMulNBitsPass(), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"MatMulNBits": 2, "Add": 1}
    assert sorted(model.graph.initializers) == ["codes.packed", "scales.packed"]


def test_codes_are_counted_from_zero_and_the_lower_one_of_two_comes_first():
    codes = np.array([[-8], [7], [0]], ml_dtypes.int4)
    packed = packed_codes(codes, bits=4, block=16)
    assert packed.shape == (1, 1, 8)
    assert packed[0, 0].tolist() == [0xF0, 0x88, *[0x88] * 6]
    assert packed_codes(np.array([[-128], [127]], np.int8), bits=8, block=16)[0, 0, :3].tolist() == [0, 255, 128]


def test_packed_codes_are_made_when_they_are_read():
    model = model_of()
    MatMulNBitsPass()(model)
    packed = only(model, "MatMulNBits").inputs[1].const_value
    assert packed.numpy() is not packed.numpy()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (LINEAR, {"block": 8}),
        (LINEAR.replace("(codes, scales)", "(codes, scales, zeros)"), {"zeros": np.ones((2, 6), np.int8)}),
        (LINEAR, {"codes": np.ones((64, 6), np.uint8)}),
        (LINEAR.replace("m = MatMul (x, w)", "n = Neg (w)\n m = MatMul (x, n)"), {}),
    ],
    ids=["a block the kernel lacks", "zero points", "unsigned codes", "computed weight"],
)
def test_what_the_kernel_cannot_read_stays(text, options):
    assert_untouched(model_of(text=text, **options), MatMulNBitsPass())


def test_zero_points_of_zero_are_no_zero_points():
    text = LINEAR.replace("(codes, scales)", "(codes, scales, zeros)")
    model = model_of(text=text, zeros=np.zeros((2, 6), np.int8))
    assert_same_outputs(model, MatMulNBitsPass(), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"MatMulNBits": 1, "Add": 1}
