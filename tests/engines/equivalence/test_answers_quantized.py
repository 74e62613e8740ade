"""What the parity check must find in a quantized engine: one thing broken by hand at a time."""

import shutil

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from quantized import quantize

from piston.core.errors import ParityError
from piston.engines.equivalence import packed_products as kernels
from piston.engines.equivalence.activation_injection import add_activation_outputs
from piston.engines.equivalence.answers import check_parity
from piston.engines.equivalence.packed_products import check_packed_products
from piston.engines.ort.cpu_graph import build_ort
from piston.graph.rounding import Grid, round_to_nearest

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def engines(toy, tmp_path_factory):
    """scheme -> cache, the canonical graph as the parity check reads it, the engine."""
    canonical = toy("llama")
    made = {}
    for scheme in ("w8a8", "w8a8 remainder", "w8", "w4"):
        root = tmp_path_factory.mktemp(scheme.replace(" ", "-"))
        path = quantize(canonical.path, root / "model", canonical.cache, scheme)
        graph = ir.load(path)
        add_activation_outputs(graph)
        ir.save(graph, root / "exposed.onnx", external_data="exposed.onnx.data")
        made[scheme] = canonical.cache, root / "exposed.onnx", build_ort(path, root / "engine", MAX_LENGTH).path
    return made


def prove_broken(engines, scheme, out, change):
    cache, canonical, path = engines[scheme]
    model = ir.load(path)
    change(model)
    shutil.copyfile(path.parent / "model.onnx.data", out / "model.onnx.data")
    ir.save(model, out / "model.onnx")
    return check_parity(canonical, out / "model.onnx", cache, max_length=MAX_LENGTH)


def products(model, op_type):
    return [node for node in model.graph if node.op_type == op_type]


def edit(model, node, index, change):
    """Give one input of one node an initializer of its own, changed."""
    old = node.inputs[index]
    array = old.const_value.numpy().copy()
    new = ir.tensor(change(array), name=f"{old.name}.edited")
    value = ir.Value(name=new.name, const_value=new, shape=new.shape, type=ir.TensorType(new.dtype))
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)


def scaled_column(array):
    array[..., 3] *= 1.03
    return array


def swapped_columns(array):
    array[:, [3, 4]] = array[:, [4, 3]]
    return array


def swapped_nibbles(array):
    array[5, 0, 0] = (array[5, 0, 0] >> 4) | (array[5, 0, 0] << 4)
    return array


def shifted(array):
    array[5, 0] += 1
    return array


def one_more(array):
    return array - array.dtype.type(1)


def one_scale(array):
    array[7] *= 1.03
    return array


INTEGER = {
    "codes of two outputs swapped": (1, swapped_columns),
    "the scale of an output": (3, scaled_column),
    "the activation's scale": (2, lambda array: array * np.float32(1.03)),
    "the zero point": (4, one_more),
}
NBITS = {"the scale of a block": (2, one_scale), "every code of a block off by one": (1, shifted)}


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("name", INTEGER)
def test_a_broken_integer_product_is_found(engines, tmp_path, name, position):
    index, change = INTEGER[name]

    def break_one(model):
        edit(model, products(model, "MatMulIntegerToFloat")[position], index, change)

    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(engines, "w8a8", tmp_path, break_one)


@pytest.mark.parametrize(("index", "change"), [(1, lambda array: array * np.float32(1.03)), (2, one_more)])
def test_activations_rounded_otherwise_are_found(engines, tmp_path, index, change):
    def break_one(model):
        edit(model, products(model, "QuantizeLinear")[3], index, change)

    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(engines, "w8a8", tmp_path, break_one)


def of_remainder(model, op_type):
    return [node for node in products(model, op_type) if "remainder" in node.name]


def swapped_difference(model):
    node = of_remainder(model, "Sub")[0]
    for index, value in enumerate(reversed(node.inputs)):
        node.replace_input_with(index, value)


REMAINDERS = {
    "a remainder of the other sign": swapped_difference,
    "codes by another scale": lambda model: edit(
        model, of_remainder(model, "QuantizeLinear")[0], 1, lambda array: array * np.float32(1.1)
    ),
    "another scale of the product": lambda model: edit(
        model, of_remainder(model, "MatMulIntegerToFloat")[0], 2, lambda array: array * np.float32(1.1)
    ),
    "a sum without it": lambda model: edit(
        model, of_remainder(model, "MatMulIntegerToFloat")[0], 2, lambda array: array * np.float32(0)
    ),
}


def test_a_remainder_that_is_whole_is_proved(engines, tmp_path):
    assert prove_broken(engines, "w8a8 remainder", tmp_path, lambda model: None).max_abs < 2e-5


@pytest.mark.parametrize("name", REMAINDERS)
def test_a_broken_remainder_is_found(engines, tmp_path, name):
    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(engines, "w8a8 remainder", tmp_path, REMAINDERS[name])


def test_the_activation_is_named_that_is_the_first_to_differ(engines, tmp_path):
    def break_down_projection(model):
        (product,) = [node for node in products(model, "MatMulIntegerToFloat") if "layers.0.mlp.down" in node.name]
        edit(model, product, 3, scaled_column)

    with pytest.raises(ParityError, match=r"prefill of 3 tokens: before it is rounded to rms_norm_2\.codes, an act"):
        prove_broken(engines, "w8a8", tmp_path, break_down_projection)


@pytest.mark.parametrize("position", [0, 4, -1])
@pytest.mark.parametrize("scheme", ["w8", "w4"])
@pytest.mark.parametrize("name", NBITS)
def test_a_broken_product_with_packed_weights_is_found(engines, tmp_path, scheme, name, position):
    index, change = NBITS[name]

    def break_one(model):
        edit(model, products(model, "MatMulNBits")[position], index, change)

    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(engines, scheme, tmp_path, break_one)


def test_two_swapped_nibbles_are_found(engines, tmp_path):
    def break_one(model):
        edit(model, products(model, "MatMulNBits")[1], 1, swapped_nibbles)

    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(engines, "w4", tmp_path, break_one)


def test_activations_that_only_the_lowered_graph_rounds_are_found(engines):
    cache, _, path = engines["w8a8"]
    _, other, _ = engines["w8"]
    with pytest.raises(ParityError, match="which the canonical one does not"):
        check_parity(other, path, cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize("scheme", ["w8a8", "w8", "w4"])
def test_kernels_are_within_their_bounds_and_leave_no_file(engines, scheme):
    path = engines[scheme][2]
    parity = check_packed_products(path)
    assert parity.products == 10
    assert parity.max_relative <= (0 if scheme == "w8a8" else 1e-2)
    assert sorted(item.name for item in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_kernel_that_rounds_more_than_it_may_is_named(engines, monkeypatch):
    monkeypatch.setitem(kernels.BOUNDS, "MatMulNBits", 1e-3)
    with pytest.raises(ParityError, match=r"MatMulNBits of model\.layers\.0\.\S+ is 0\.00\d+ of its size away"):
        check_packed_products(engines["w8"][2])


def test_the_simulation_in_float_is_not_fused(engines):
    path = engines["w8a8"][1]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(path.with_name("run.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    run, written = ([node.op_type for node in ir.load(item).graph] for item in (path.with_name("run.onnx"), path))
    assert set(run) == set(written)
    for op_type in ("QuantizeLinear", "MatMul"):  # it gives each reader a DequantizeLinear of its own
        assert run.count(op_type) == written.count(op_type) > 0


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_weights_that_are_all_zero_are_no_mismatch(engines, scheme, tmp_path):
    """As in layers that were added to a trained model, or pruned: they must not be judged by a size of zero."""
    model = ir.load(engines[scheme][2])
    node = products(model, "MatMulNBits")[0]
    bits = node.attributes["bits"].as_int()
    zeros = round_to_nearest(np.zeros((32, 1), np.float32), Grid(bits, 32)).scales[0, 0]
    edit(model, node, 1, lambda codes: np.full_like(codes, 128 if bits == 8 else 0x88))
    edit(model, node, 2, lambda scales: np.full_like(scales, zeros))
    path = tmp_path / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    assert check_packed_products(path).products > 1
