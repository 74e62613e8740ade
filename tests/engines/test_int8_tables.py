"""Quantized tables run in the kernels made for them, from one copy of the codes."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from piston.engines.lowering.int8_tables import Int8TablesPass

VOCAB, WIDTH, BLOCK = 60, 64, 32
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (VOCAB, WIDTH)).astype(np.int8)
SCALES = RNG.uniform(0.001, 0.01, (VOCAB, WIDTH // BLOCK)).astype(np.float32)
TABLE = CODES * np.repeat(SCALES, BLOCK, axis=1)
IDS = np.array([[3, 59, 0]])

TEXT = f"""
<ir_version: 10, opset_import: ["" : 24]>
g (int64[b, s] input_ids) => (float[b, s, {WIDTH}] embedding, float[b, s, {VOCAB}] logits)
<int8[{VOCAB}, {WIDTH}] codes, float[{VOCAB}, {WIDTH // BLOCK}] scales,
 int64[4] blocks = {{0, 0, {WIDTH // BLOCK}, {BLOCK}}}, int64[1] last = {{-1}}, int64[3] rows = {{0, 0, {WIDTH}}}> {{
  [embed] picked = Gather (codes, input_ids)
  [cast] wide = Cast <to = 1> (picked)
  [split] split = Reshape (wide, blocks)
  [pick] factors = Gather (scales, input_ids)
  [column] column = Unsqueeze (factors, last)
  [mul] product = Mul (split, column)
  [merge] embedding = Reshape (product, rows)
  [table] table = DequantizeLinear <axis = 1, block_size = {BLOCK}> (codes, scales)
  [turn] turned = Transpose <perm = [1, 0]> (table)
  [lm_head] logits = MatMul (embedding, turned)
}}
"""


def make(text=TEXT):
    model = ir.from_onnx_text(text)
    for name, array in (("codes", CODES), ("scales", SCALES)):
        value = model.graph.initializers.get(name) or next(v for n in model.graph for v in n.inputs if v.name == name)
        value.const_value = ir.tensor(array, name=name)
        if name not in model.graph.initializers:
            model.graph.register_initializer(value)
    common.ShapeInferencePass()(model)
    return model


def run(model):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"input_ids": IDS})


def test_rows_and_logits_are_what_the_codes_say():
    model = make()
    Int8TablesPass()(model)
    embedding, logits = run(model)
    assert np.abs(embedding - TABLE[IDS]).max() < 1e-6
    exact = TABLE[IDS] @ TABLE.T  # the kernel rounds activations to INT8, by blocks
    assert np.abs(logits - exact).max() < 0.02 * np.abs(exact).max()


def test_both_kernels_read_one_copy():
    model = make()
    Int8TablesPass()(model)
    kinds = [node.op_type for node in model.graph]
    assert sorted(kinds) == ["GatherBlockQuantized", "MatMulNBits", "Reshape"]
    gather, product = (
        next(n for n in model.graph if n.op_type == kind) for kind in ("GatherBlockQuantized", "MatMulNBits")
    )
    assert gather.inputs[0] is product.inputs[1]


@pytest.mark.parametrize(("old", "new"), [("axis = 1", "axis = 0"), (f"block_size = {BLOCK}", "block_size = 16")])
def test_a_table_of_another_form_stays(old, new):
    model = make(
        TEXT.replace(
            f"DequantizeLinear <axis = 1, block_size = {BLOCK}>",
            f"DequantizeLinear <axis = 1, block_size = {BLOCK}>".replace(old, new),
        )
    )
    Int8TablesPass()(model)
    assert "MatMulNBits" not in [node.op_type for node in model.graph]
