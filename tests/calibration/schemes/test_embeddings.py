"""The tables in INT8 are the model with rounded tables, and stored once where they are one."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
from canonical import CanonicalSession

from piston.calibration.graph.linears import find_linears
from piston.calibration.schemes.embeddings import QuantizeTablesPass, embedding_of, round_rows

BLOCK = 32
PROMPT = np.random.default_rng(2).integers(3, 131, 17).tolist()


def logits(path, spec):
    session, seq = CanonicalSession(path, spec, 1, 20), len(PROMPT)
    return session.step([PROMPT], [range(seq)], [0], [seq], [range(seq)])[0]


def head_of(model):
    return next(linear for linear in find_linears(model) if "layers." not in linear.name)


def rounded(table):
    """By hand: blocks of 32 along each row, the largest of each at 127."""
    blocks = table.reshape(len(table), -1, BLOCK)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return (np.rint(blocks / scales) * scales).reshape(table.shape).astype(np.float32)


def set_array(value, array):
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


@pytest.mark.parametrize(("name", "embedding", "head"), [
    ("llama", True, True), ("llama", True, False), ("llama", False, True),
    ("qwen2", True, True), ("qwen2", True, False), ("qwen2", False, True),
])  # fmt: skip
def test_it_is_the_model_with_rounded_tables(name, embedding, head, toy, tmp_path):
    path, spec = toy(name).path, toy(name).cache
    expected, model = ir.load(path), ir.load(path)
    QuantizeTablesPass(embedding=embedding, head=head_of(model) if head else None, block=BLOCK)(model)
    table, matrix = embedding_of(expected.graph).inputs[0], head_of(expected).weight
    if table is matrix and embedding != head:
        copy = ir.Value(name="copy", shape=table.shape, type=table.type, const_value=table.const_value)
        expected.graph.register_initializer(copy)
        embedding_of(expected.graph).replace_input_with(0, copy)
        table = copy
    if embedding:
        set_array(table, rounded(table.const_value.numpy()))
    if head and (table is not matrix or not embedding):
        array = matrix.const_value.numpy()
        set_array(matrix, rounded(array) if head_of(expected).is_transposed else rounded(array.T).T)
    for part, graph in (("given", model), ("expected", expected)):
        (tmp_path / part).mkdir()
        ir.save(graph, tmp_path / part / "model.onnx", external_data="model.onnx.data")
    given = logits(tmp_path / "given/model.onnx", spec)
    # ONNX Runtime rounds activations to INT8 too where blocks of INT8 are multiplied untransposed (1.32).
    allowed = 1e-4 if not head or head_of(expected).is_transposed else 0.05
    assert np.abs(given - logits(tmp_path / "expected/model.onnx", spec)).max() < allowed
    assert np.abs(given - logits(path, spec)).max() > 1e-4


def test_an_untied_head_has_the_codes_of_its_columns(toy):
    model = ir.load(toy("llama").path)
    array = head_of(model).weight.const_value.numpy()
    QuantizeTablesPass(embedding=False, head=head_of(model), block=BLOCK)(model)
    codes, scales = (
        model.graph.initializers[f"lm_head.weight.{part}"].const_value.numpy() for part in ("codes", "scales")
    )
    assert np.allclose(codes * np.repeat(scales, BLOCK, axis=0), rounded(array.T).T, atol=1e-6)


def test_a_tied_table_is_stored_once_and_not_in_float(toy):
    model = ir.load(toy("qwen2").path)
    QuantizeTablesPass(embedding=True, head=head_of(model), block=BLOCK)(model)
    large = [value for value in model.graph.initializers.values() if value.const_value.size >= 131 * 64]
    assert sum(value.dtype == ir.DataType.INT8 for value in large) == 1
    assert not any(value.dtype == ir.DataType.FLOAT and value.shape[0] == 131 for value in large)


def test_no_whole_table_is_dequantized_for_the_embedding(toy):
    model = ir.load(toy("llama").path)
    QuantizeTablesPass(embedding=True, head=None, block=BLOCK)(model)
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph)


def test_a_width_that_blocks_do_not_divide_has_one_scale_a_row():
    table = np.random.default_rng(0).normal(size=(10, 40)).astype(np.float32)
    codes, scales, block = round_rows(table, BLOCK)
    assert (scales.shape, block) == ((10, 1), 40)
    assert np.abs(codes * scales - table).max() <= scales.max() / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("width", "wanted", "block"), [(128, 64, 64), (96, 64, 32), (96, 32, 32), (48, 64, 48)])
def test_a_table_gets_the_largest_block_that_leaves_no_rest(width, wanted, block):
    codes, scales, found = round_rows(np.random.default_rng(0).standard_normal((5, width)).astype(np.float32), wanted)
    assert (codes.shape, scales.shape, found) == ((5, width), (5, width // block), block)
