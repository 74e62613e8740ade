"""Encoders on the target ort-cpu:avx512: what is replaced, how it is checked, and that padding changes no bit."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from encoders import WORDS, write_sentence_checkpoint
from own_kernels import need_kernels

from piston.calibration.recipe import Recipe
from piston.core.bundle.interface import ENCODER
from piston.core.bundle.manifest import Manifest
from piston.core.errors import EngineError, MisuseError, ParityError
from piston.engines import build
from piston.engines.equivalence.replaced_in_texts import check_replaced_in_texts, has_same_bits
from piston.runtime import kernels, load
from piston.runtime.backends.registry import select_engine
from piston.runtime.bundle import Bundle

MAX_LENGTH = 40
SIZES = {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": MAX_LENGTH + 2}
# name -> model type and config
MODELS = {
    "bert": ("bert", SIZES),
    "tanh": ("bert", SIZES | {"hidden_act": "gelu_new"}),
    "mpnet": ("mpnet", SIZES),
}
TEXTS = [" ".join(WORDS[:count]) for count in (1, 3, 14, 7)]


@pytest.fixture(scope="session")
def bundle(toys):
    """bundle(name, scheme) -> a bundle for ort-cpu and own kernels, of sizes that the kernels take.

    The scheme bf16 is fp, with products of bfloat16 on own kernels.
    """
    need_kernels()
    text = "\n".join(f"{one} {two}" for one in TEXTS for two in TEXTS)

    def of(name, scheme):
        model_type, config = MODELS[name]
        model = toys.exported(write_sentence_checkpoint, model_type, max_length=MAX_LENGTH, config=config)
        if scheme == "bf16":
            return toys.built(model, ("ort-cpu", kernels.TARGET), dtype="bf16")
        if scheme != "fp":
            recipe = Recipe(scheme=scheme, block=32 if scheme == "w4" else 0)
            given = text if scheme == "w8a8" else None
            model = toys.calibrated(model, recipe, given, num_rows=4, seq_len=12, seed=1)
        return toys.built(model, ("ort-cpu", kernels.TARGET))

    return of


REPLACED = [
    ("bert", "w8a8", {"attention": 2, "linears": 10, "gelu": 2, "norms": 5}),
    ("tanh", "w8a8", {"attention": 2, "linears": 10, "gelu": 2, "norms": 5}),
    ("mpnet", "w8a8", {"attention": 0, "linears": 10, "gelu": 2, "norms": 5}),  # its graph adds a bias to scores itself
    ("bert", "w8", {"attention": 2, "blocks": 6, "gelu": 2, "norms": 5}),
    ("bert", "w4", {"attention": 2, "blocks": 6, "gelu": 2, "norms": 5}),
    ("bert", "fp", {"attention": 2, "norms": 5, "bfloat16": 0}),
    ("bert", "bf16", {"attention": 2, "norms": 5, "bfloat16": 12}),
    ("tanh", "bf16", {"attention": 2, "norms": 5, "bfloat16": 12}),
]


@pytest.mark.parametrize(("name", "scheme", "replaced"), REPLACED)
def test_embeddings_are_those_of_ort_cpu_and_every_group_of_nodes_is_replaced(bundle, name, scheme, replaced):
    manifest = Manifest.read(bundle(name, scheme))
    found = manifest.engines[1].actual["own_kernels"]
    assert {name: found[name] for name in replaced} == replaced
    assert found["same_bits_in_batches"]
    vectors = []
    for target in ("ort-cpu", kernels.TARGET):
        with load(bundle(name, scheme), target=target) as model:
            vectors.append(model.embed(TEXTS))
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "w8a8") for name in MODELS] + [("bert", scheme) for scheme in ("w8", "w4", "fp", "bf16")],
)
def test_padding_changes_no_bit(bundle, name, scheme):
    with load(bundle(name, scheme), target=kernels.TARGET) as model:
        together = model.embed(TEXTS)
        for text, expected in zip(TEXTS, together, strict=True):
            np.testing.assert_array_equal(model.embed([text])[0], expected)


def test_own_kernels_are_preferred(bundle):
    chosen, others = select_engine(Bundle.open(bundle("bert", "w8a8")))
    assert (chosen.target, list(others)) == (kernels.TARGET, ["ort-cpu"])


@pytest.mark.parametrize(
    ("op_type", "index", "change"),
    [
        ("BidirectionalAttentionCodes", 4, lambda scale: scale * np.float32(1.02)),
        ("GeluLinearCodes", 4, lambda bias: bias + np.float32(0.01)),
        ("GeluLinearCodes", 5, lambda scale: scale * np.float32(1.02)),
        ("LayerNormCodes", 3, lambda bias: bias + np.float32(0.01)),
        ("IntegerLinear", 1, lambda tiles: np.roll(tiles, 1, axis=1)),
    ],
)
def test_a_wrong_constant_is_found(bundle, tmp_path, op_type, index, change):
    directory = bundle("bert", "w8a8")
    manifest = Manifest.read(directory)
    before, after = (directory / spec.path for spec in manifest.engines)
    model = ir.load(after)
    node = [node for node in model.graph if node.op_type == op_type][-1]
    array = np.ascontiguousarray(change(node.inputs[index].const_value.numpy()))
    wrong = ir.Value(
        name="wrong", const_value=ir.tensor(array), shape=ir.Shape(array.shape), type=node.inputs[index].type
    )
    model.graph.register_initializer(wrong)
    node.replace_input_with(index, wrong)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    with pytest.raises(ParityError, match="differs from what it replaced"):
        check_replaced_in_texts(
            before, tmp_path / "model.onnx", manifest.graphs[ENCODER], manifest, max_length=MAX_LENGTH
        )


def test_an_engine_that_other_rows_change_is_found(bundle, tmp_path):
    directory = bundle("bert", "w8a8")
    manifest = Manifest.read(directory)
    after = directory / manifest.engines[1].path
    model = ir.load(after)
    node = next(node for node in model.graph if node.op_type == "SumTokens")
    readers = list(node.outputs[0].uses())
    size = ir.node("ReduceSum", [node.inputs[1]], {"keepdims": 0}, name="size")  # of all texts together
    longer = ir.node("Mul", [node.outputs[0], size.outputs[0]], name="longer")
    for one in (longer, size):
        one.outputs[0].name, one.outputs[0].type = one.name, node.outputs[0].type
        model.graph.insert_after(node, one)
    for reader, index in readers:
        reader.replace_input_with(index, longer.outputs[0])
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    interface = manifest.graphs[ENCODER]
    assert has_same_bits(after, interface, manifest, max_length=MAX_LENGTH)
    assert not has_same_bits(tmp_path / "model.onnx", interface, manifest, max_length=MAX_LENGTH)


def test_heads_of_other_widths_stay_and_a_model_without_any_part_is_refused(sentence_model, tmp_path):
    need_kernels()
    with pytest.raises(EngineError, match="build it for ort-cpu"):  # heads of 8, in float
        build(sentence_model[0], tmp_path / "bundle", [kernels.TARGET])


def test_no_node_is_left_around_the_kernels(bundle):
    directory = bundle("bert", "w8a8")
    counted = Counter(node.op_type for node in ir.load(directory / Manifest.read(directory).engines[1].path).graph)
    assert not {"Transpose", "Reshape", "QuantizeLinear", "Attention", "Gelu", "SkipLayerNormalization"} & set(counted)


def test_sparse_weights_are_stored_without_zeros_and_give_the_same_bits(toys):
    need_kernels()
    model_type, config = MODELS["bert"]
    model = toys.exported(write_sentence_checkpoint, model_type, max_length=MAX_LENGTH, config=config)
    recipe = Recipe(scheme="w8", sparsity="2:4", pruning="magnitude")
    sparse = toys.calibrated(model, recipe, bounds=("cosine>=0.02",), num_rows=4, seq_len=12, seed=1)
    vectors, sizes, packed = [], [], []
    for sparsity in (True, False):
        directory = toys.built(sparse, (kernels.TARGET,), sparsity=sparsity)
        actual = Manifest.read(directory).engines[0].actual
        packed.append(actual["sparse"]["packed"])
        sizes.append(actual["weights_bytes"])
        with load(directory) as loaded:
            vectors.append(loaded.embed(TEXTS))
    assert packed == [12, 0]  # of two layers: query, key, value, output and two of the MLP
    assert sizes[1] - sizes[0] == pytest.approx(2 * (4 * 128 * 128 + 2 * 128 * 192) * 24 / 64, rel=0.02)
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_what_bfloat16_moves_is_recorded_and_verified(bundle, piston):
    directory = bundle("bert", "bf16")
    plain, rounded = Manifest.read(directory).engines
    assert (plain.actual["dtype"], rounded.actual["dtype"]) == ("float32", "bfloat16")
    assert 1e-4 < rounded.actual["own_kernels"]["bfloat16_moved"] < 0.05
    assert rounded.actual["weights_bytes"] < 0.8 * plain.actual["weights_bytes"]
    assert piston("verify", directory).status == 0


def test_a_wrong_weight_of_bfloat16_is_found(bundle, tmp_path):
    directory = bundle("bert", "bf16")
    manifest = Manifest.read(directory)
    before, after = (directory / spec.path for spec in manifest.engines)
    model = ir.load(after)
    node = [node for node in model.graph if node.op_type == "GeluBfloat16Linear"][-1]
    array = np.ascontiguousarray(np.roll(node.inputs[1].const_value.numpy(), 1, axis=1))
    wrong = ir.Value(name="wrong", const_value=ir.tensor(array), shape=ir.Shape(array.shape), type=node.inputs[1].type)
    model.graph.register_initializer(wrong)
    node.replace_input_with(1, wrong)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    with pytest.raises(ParityError, match="differs from what it replaced"):
        check_replaced_in_texts(
            before, tmp_path / "model.onnx", manifest.graphs[ENCODER], manifest, max_length=MAX_LENGTH
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["ort-cpu"], "dtype": "bf16"}, "--dtype is for ort-cpu:avx512 and TensorRT targets"),
        ({"targets": [kernels.TARGET], "dtype": "fp16"}, "takes --dtype bf16, of encoders alone"),
    ],
)
def test_other_types_and_targets_are_refused(sentence_model, tmp_path, options, message):
    need_kernels()
    with pytest.raises(MisuseError, match=message):
        build(sentence_model[0], tmp_path / "bundle", options.pop("targets"), **options)
