"""Weights of own kernels that are 2:4 sparse are stored without their zeros, and no others."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from piston.engines.lowering.kernels.blocks import KernelBlocksPass, KernelGatedBlocksPass
from piston.engines.lowering.kernels.linear import KernelLinearPass
from piston.engines.lowering.kernels.sparse import KernelSparsePass
from piston.engines.lowering.kernels.table import KernelTablePass
from piston.engines.lowering.matmul_nbits import packed_codes

DEPTH, WIDTH, BLOCK = 64, 32, 32
RNG = np.random.default_rng(0)
SPARSE = (RNG.integers(1, 7, (DEPTH, WIDTH)) * np.tile([[1], [0], [0], [1]], (DEPTH // 4, WIDTH))).astype(np.int8)
FEWER = SPARSE * (np.arange(DEPTH)[:, None] % 8 != 0)  # fours with one weight
THREE = SPARSE.copy()
THREE[5, 7] = 1  # one four with three


def by_blocks(codes, bits):
    """MatMulNBits as it stands in an engine for ort-cpu."""
    scales = np.ones(WIDTH * DEPTH // BLOCK, np.float32)
    attributes = {"K": DEPTH, "N": WIDTH, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    return model_of([node], TensorProto.FLOAT, w=packed_codes(codes, bits, BLOCK), s=scales)


def in_integers(codes):
    """MatMulIntegerToFloat as it stands in an engine for ort-cpu."""
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "a", "s", "z"], ["y"], domain="com.microsoft")
    scale, zero = np.array(0.1, np.float32), np.array(128, np.uint8)
    return model_of([node], TensorProto.UINT8, w=codes, a=scale, s=np.ones(WIDTH, np.float32), z=zero)


def model_of(nodes, dtype, inputs=(), **constants):
    given = [*inputs, helper.make_tensor_value_info("x", dtype, [1, 2, DEPTH])]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, WIDTH])
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", given, [result], stored)
    opsets = [helper.make_opsetid(domain, 1 if domain else 21) for domain in ("", "com.microsoft")]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets))


def stored_rows(model):
    """Bytes of a row of every weight in tiles; how many layers were packed."""
    sparse = KernelSparsePass()
    ir.passes.Sequential(KernelLinearPass(), KernelTablePass(), KernelGatedBlocksPass(), KernelBlocksPass(), sparse)(
        model
    )
    tiles = [value for value in model.graph.initializers.values() if ".tiles" in value.name and "w" in value.name]
    for value in tiles:
        assert list(value.const_value.numpy().shape) == list(value.shape)
    return [value.shape[-1] for value in tiles if value.shape[-1] != 16], sparse.packed


@pytest.mark.parametrize(
    ("codes", "is_packed"), [(SPARSE, True), (FEWER, True), (THREE, False)], ids=["sparse", "fewer", "three"]
)
@pytest.mark.parametrize(("form", "row"), [("integers", 80), (8, 80), (4, 48)])
def test_a_weight_is_packed_if_no_four_of_its_inputs_have_three(codes, is_packed, form, row):
    model = in_integers(codes) if form == "integers" else by_blocks(codes, form)
    assert stored_rows(model) == ([row if is_packed else 64], int(is_packed))


def test_zeros_along_outputs_are_no_reason():
    turned = np.ascontiguousarray(np.tile(SPARSE.T, (2, 1))[:, :WIDTH])
    assert stored_rows(in_integers(turned)) == ([64], 0)


def test_a_table_that_rows_are_read_from_stays():
    model = by_blocks(SPARSE, 8)
    weight = model.graph.initializers["w"].const_value.numpy()
    nodes = [
        helper.make_node(
            "GatherBlockQuantized",
            ["w", "ids", "s2"],
            ["rows"],
            domain="com.microsoft",
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=2,
        ),
        helper.make_node("Reshape", ["rows", "shape"], ["x"]),
    ]
    product = ir.to_proto(model).graph.node[0]
    constants = {"w": weight, "s": np.ones(WIDTH * 2, np.float32), "s2": np.ones((WIDTH, 2, 1), np.float32)}
    graph = helper.make_graph(
        [*nodes, product],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in {**constants, "shape": np.array([1, 2, 64])}.items()],
        value_info=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, DEPTH])],
    )
    opsets = [helper.make_opsetid(domain, 1 if domain else 21) for domain in ("", "com.microsoft")]
    tied = ir.from_proto(helper.make_model(graph, opset_imports=opsets))
    assert stored_rows(tied) == ([64], 0)
    assert [node.op_type for node in tied.graph] == ["BlockRows", "BlockLinear"]
