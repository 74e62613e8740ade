"""2:4 sparsity from the canonical graph to an engine: what is sparse there is sparse in the lowered graph."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.errors import ParityError
from piston.engines.linear_work import Product
from piston.engines.lowering.quantize_head import head_of
from piston.engines.tensorrt.precision_mix import product_of as canonical_product
from piston.graph.pattern import array_of, int_attribute
from piston.graph.sparsity import is_sparse

BYTE, NIBBLE = 8, 4


@dataclass(frozen=True, slots=True)
class SparseWork:
    """Linear layers, lm_head aside, with 2:4 sparse weights, and their multiply-adds of one token, of all."""

    layers: int
    amount: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"layers": self.layers, "share": self.amount / max(self.total, 1)}


def sparse_work(graph: ir.Graph, product_of: Callable[[ir.Node], Product | None]) -> SparseWork:
    """Count the products by sparse constant matrices, each matrix once; only a tied lm_head's is transposed."""
    head = head_of(graph)
    products = {
        product.matrix: product for node in graph if node is not head and (product := product_of(node)) is not None
    }
    sparse = [product for product in products.values() if is_sparse(_codes(product))]
    return SparseWork(len(sparse), _sum(sparse), _sum(products.values()))


def check_sparse(
    canonical: ir.Graph, lowered: ir.Graph, product_of: Callable[[ir.Node], Product | None]
) -> SparseWork | None:
    """What is sparse in `lowered`; None where the canonical graph has no sparse weight.

    Raises:
        ParityError: fewer multiply-adds are by sparse weights than in the canonical graph.
    """
    wanted = sparse_work(canonical, canonical_product)
    if not wanted.layers:
        return None
    found = sparse_work(lowered, product_of)
    if found.amount < wanted.amount:
        raise ParityError(
            f"{wanted.layers} linear layers of the canonical graph are 2:4 sparse ({wanted.amount:,} multiply-adds), "
            f"but in the lowered graph only {found.amount:,} multiply-adds are by sparse weights."
        )
    return found


def _sum(products: Iterable[Product]) -> int:
    return sum(product.amount for product in products)


def _codes(product: Product) -> NDArray[Any]:
    """The matrix [K, N], or its codes, zero where the weight is zero."""
    if product.node.op_type == "MatMulNBits":
        return _unpacked(product)
    matrix = array_of(product.matrix)
    if matrix.dtype in (ml_dtypes.int4, ml_dtypes.bfloat16):
        matrix = matrix.astype(np.float32)
    return matrix


def _unpacked(product: Product) -> NDArray[np.int16]:
    """Codes of MatMulNBits' [N, blocks, bytes] about zero, [K, N]."""
    node = product.node
    bits, inputs = int_attribute(node, "bits", NIBBLE), int_attribute(node, "K")
    packed = array_of(product.matrix)
    packed = packed.reshape(len(packed), -1)
    if bits == NIBBLE:
        packed = np.stack([packed & 0xF, packed >> NIBBLE], axis=-1).reshape(len(packed), -1)
    return packed[:, :inputs].T.astype(np.int16) - (1 << (bits - 1))
