"""Zeros that a lowering fills in are found, in whatever form weights are stored."""

import numpy as np
import pytest
from onnx_text import parse

from piston.core.errors import ParityError
from piston.engines.equivalence.sparse_weights import check_sparse, sparse_work
from piston.engines.linear_work import product_of
from piston.engines.lowering.matmul_nbits import MatMulNBitsPass
from piston.engines.tensorrt.precision_mix import product_of as canonical_product
from piston.graph.qdq import dequantize_weight

PLAIN = "g (float[1, 2, 64] x) => (float[1, 2, 32] y) { y = MatMul (x, w) }"
RNG = np.random.default_rng(0)
PATTERN = np.tile(np.array([[1], [0], [1], [0]]), (16, 32))
SPARSE = (RNG.integers(1, 7, (64, 32)) * PATTERN).astype(np.int8)
DENSE = np.ones((64, 32), np.int8)


def float_graph(weight):
    return parse(PLAIN, w=weight.astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("codes", "layers"), [(SPARSE, 1), (DENSE, 0)], ids=["sparse", "dense"])
def test_packed_codes_are_sparse_where_the_codes_are(bits, codes, layers):
    import ml_dtypes

    model = float_graph(codes)
    stored = codes.astype(ml_dtypes.int4) if bits == 4 else codes
    dequantize_weight(model.graph, "w", stored, np.ones((2, 32), np.float32), 32)
    assert sparse_work(model.graph, canonical_product).layers == layers
    MatMulNBitsPass()(model)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    assert sparse_work(model.graph, product_of).layers == layers


def test_zeros_that_were_filled_in_are_refused_with_the_amounts():
    with pytest.raises(ParityError, match=r"1 linear layers .* 2:4 sparse \(2,048 multiply-adds\), .* only 0 multiply"):
        check_sparse(float_graph(SPARSE).graph, float_graph(DENSE).graph, product_of)


def test_a_model_without_sparse_weights_is_not_looked_at_twice():
    assert check_sparse(float_graph(DENSE).graph, float_graph(DENSE).graph, product_of) is None
