"""What the parity check must find: one thing broken by hand at a time, and the node named."""

import shutil

import numpy as np
import onnx_ir as ir
import pytest

from piston.core.errors import EngineError, ParityError
from piston.engines.equivalence.same_graph import check_same
from piston.engines.tensorrt.equivalence import answers as proving
from piston.engines.tensorrt.equivalence.answers import check_parity


@pytest.fixture
def prove_broken(lowered_toy, tmp_path):
    """Prove a toy's file, or its float32 reference, after `change(model)`."""

    def prove_changed(change, scheme="fp", *, float32=False, model_type="llama"):
        made = lowered_toy(model_type, scheme)
        path = broken(made.file.float32 if float32 else made.file.path, tmp_path, change)
        cache = made.model.cache.with_dtype("float32")
        dtype = "float32" if float32 else "float16"
        return check_parity(made.reference, path, cache, made.file.sizes, dtype, window=made.file.window)

    return prove_changed


def broken(path, out, change):
    model = ir.load(path)
    change(model)
    shutil.copyfile(path.with_name("model.onnx.data"), out / "model.onnx.data")
    ir.save(model, out / "model.onnx")
    return out / "model.onnx"


def attention(model, layer=1):
    return [node for node in model.graph if node.op_type == "TRT_Attention"][layer]


def edit(model, node, index, change):
    """Give one input of one node an initializer of its own, changed."""
    old = node.inputs[index]
    array = change(old.const_value.numpy().copy())
    tensor = ir.tensor(np.asarray(array, old.const_value.numpy().dtype), name=f"{old.name}.edited")
    value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)


def named(model, name):
    (node,) = [node for node in model.graph if node.name == name]
    return node


def scale_of_attention(factor):
    def change(model):
        scaled = attention(model).inputs[0].producer()
        edit(model, scaled, 1, lambda array: array * factor)

    return change


def align_with_the_first_keys(model):
    attention(model).attributes["causal_kind"] = ir.AttrString("causal_kind", "upper_left")


def lengths_without_this_step(model):
    write_indices = next(value for value in model.graph.inputs if value.name == "write_indices")
    attention(model).replace_input_with(5, write_indices)


BROKEN = {
    "the scale": scale_of_attention(1.5),
    "the alignment": align_with_the_first_keys,
    "the lengths": lengths_without_this_step,
}


@pytest.mark.parametrize("float32", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_attention_is_found_and_named(name, float32, prove_broken):
    expected = (
        r"differs from the canonical one at the .*differ is model\.layers\.1\.self_attn/TRT_Attention \(TRT_Atten"
    )
    with pytest.raises(ParityError, match=expected):
        prove_broken(BROKEN[name], float32=float32)


def test_three_per_cent_of_a_scale_are_found_in_the_twin(prove_broken):
    with pytest.raises(ParityError, match=r"self_attn/TRT_Attention"):
        prove_broken(scale_of_attention(1.03), float32=True)


def test_a_scale_that_only_the_file_has_wrong_is_found_by_comparing_it_with_its_twin(lowered_toy, tmp_path):
    made = lowered_toy("llama")
    path = broken(made.file.path, tmp_path, scale_of_attention(1.03))
    with pytest.raises(
        ParityError, match=r"self_attn/Mul \(Mul\) .* differs from its float32 reference in its input 1"
    ):
        check_same(made.file.float32, path)


def test_an_attribute_or_an_input_that_only_the_file_has_is_found(lowered_toy, tmp_path):
    made = lowered_toy("llama")
    for change, what in ((align_with_the_first_keys, "its attributes"), (lengths_without_this_step, "its input 5")):
        path = broken(made.file.path, tmp_path, change)
        with pytest.raises(ParityError, match=f"differs from its float32 reference in {what}"):
            check_same(made.file.float32, path)


@pytest.mark.parametrize(
    ("part", "index"), [("up_proj.weight/DequantizeLinear", 1), ("up_proj.weight/DequantizeLinear", 0)]
)
def test_a_broken_weight_is_found_at_its_product(part, index, prove_broken):
    def change(model):
        edit(model, named(model, f"model.layers.0.mlp.{part}"), index, lambda array: np.roll(array, 1, axis=-1))

    with pytest.raises(ParityError, match=r"differ is model\.layers\.0\.mlp\.up_proj/MatMul \(MatMul\)"):
        prove_broken(change, "w8a8", float32=True)


def test_an_activation_rounded_by_another_scale_is_found(prove_broken):
    def change(model):
        quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
        for use in list(quantize.outputs[0].uses()):
            edit(model, use.node, 1, lambda array: array * np.float32(1.05))

    with pytest.raises(ParityError, match=r"differ is model\.layers\.0\.self_attn\.._proj/MatMul"):
        prove_broken(change, "w8a8", float32=True)


@pytest.mark.parametrize("float32", [True, False])
def test_a_remainder_of_the_other_sign_is_found(prove_broken, float32):
    def change(model):
        node = next(node for node in model.graph if node.op_type == "Sub" and "remainder" in node.name)
        for index, value in enumerate(reversed(node.inputs)):
            node.replace_input_with(index, value)

    with pytest.raises(ParityError, match=r"what becomes .*remainder\.codes differs"):
        prove_broken(change, "w8a8 remainder", float32=float32)


@pytest.mark.parametrize("float32", [True, False])
def test_a_remainder_by_another_scale_is_found(prove_broken, float32):
    def change(model):
        quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear" and "remainder" in node.name)
        for use in list(quantize.outputs[0].uses()):
            edit(model, use.node, 1, lambda array: array * np.float32(1.3))

    with pytest.raises(ParityError, match="differs from the canonical one"):
        prove_broken(change, "w8a8 remainder", float32=float32)


def test_a_window_off_by_one_is_found(prove_broken):
    def change(model):
        more = next(node for node in model.graph if node.op_type == "Greater" and not node.name.startswith("next/"))
        edit(model, more.inputs[1].producer(), 1, lambda array: array + 1)

    with pytest.raises(ParityError, match=r"self_attn/TRT_Attention"):
        prove_broken(change, float32=True, model_type="mistral")


def test_a_wrong_next_step_is_found(prove_broken):
    def change(model):
        (later,) = [node for node in model.graph if node.outputs[0].name == "next.kv_lengths"]
        edit(model, later, 1, lambda array: array + 1)

    with pytest.raises(ParityError, match=r"next\.kv_lengths is \[5\], not \[4\]"):
        prove_broken(change)


@pytest.mark.parametrize("operator", ["CumSum", "TopK", "GatherElements"])
def test_a_wrong_draw_is_found(prove_broken, operator):
    def change(model):
        (node,) = [node for node in model.graph if node.op_type == operator]
        if operator == "CumSum":
            node.attributes["reverse"] = ir.AttrInt64("reverse", 1)
        elif operator == "TopK":
            node.attributes["largest"] = ir.AttrInt64("largest", 0)
        else:
            zeros = ir.node("Mul", [node.inputs[0], zero(model)], name="next/zeros")
            zeros.outputs[0].name = "zeros"
            model.graph.insert_before(node, zeros)
            node.replace_input_with(0, zeros.outputs[0])

    with pytest.raises(ParityError, match=r"next\.input_ids holds \d+, which its logits and options do not give"):
        prove_broken(change)


def zero(model):
    tensor = ir.tensor(np.float32(0), name="a.zero")
    value = ir.Value(name="a.zero", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


def test_an_attention_of_unknown_meaning_is_not_executed(prove_broken):
    def change(model):
        attention(model).attributes["is_causal"] = ir.AttrInt64("is_causal", 1)

    with pytest.raises(EngineError, match="whose meaning is not written down"):
        prove_broken(change)


def test_nothing_is_left_beside_the_file(lowered_toy, prove_broken):
    made = lowered_toy("llama")
    with pytest.raises(ParityError):
        prove_broken(BROKEN["the scale"])
    assert sorted(path.name for path in made.file.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_twin_is_given_what_rounding_alone_does_to_the_canonical_graph(prove_broken, monkeypatch):
    slightly = scale_of_attention(1.003)
    with pytest.raises(ParityError):
        prove_broken(slightly, float32=True)
    monkeypatch.setattr(proving, "slack_of", lambda *_, **__: 20.0)
    parity = prove_broken(slightly, float32=True)
    assert parity.slack == 20
    assert parity.bound / 20 < parity.max_abs < parity.bound


def test_the_file_in_float16_is_not_asked_for_its_noise(prove_broken, monkeypatch):
    monkeypatch.setattr(proving, "slack_of", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ParityError):
        prove_broken(scale_of_attention(1.5))
