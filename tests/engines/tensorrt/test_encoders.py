"""Encoders for TensorRT-RTX: lowered, compared with the canonical graph on ONNX Runtime, compiled without a GPU."""

import numpy as np
import onnx_ir as ir
import pytest
from encoders import CASES, DECODERS, ENCODERS, encoder_toy

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.bundle.plan_header import PlanHeader
from piston.core.errors import EngineError, MisuseError, ParityError
from piston.engines import build
from piston.engines.equivalence.answers import reference_of
from piston.engines.tensorrt.encoder import prove_encoder, write_encoder
from piston.engines.tensorrt.equivalence.lockstep import write_exposed

RTX = "tensorrt-rtx:sm89"
LENGTH = 24
TASK = "token-classification"
# One model of each form of attention runs by default: lengths, lengths with a window, none (its scores are computed by
# standard operators), causal.
DEFAULT = {"bert", "modernbert", "deberta-v2", "llama"}
MOST_LOST = {"float32": 2e-5, "float16": 5e-3}  # by an output row, of its length
TYPES = [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in [*ENCODERS, *DECODERS]]


@pytest.fixture
def encoder_dir(toys):
    """encoder_dir(model_type, scheme="fp") -> a seeded two-layer model as `piston export` and `calibrate` write it."""

    def of(model_type, scheme="fp"):
        task = TASK if model_type in ENCODERS else "text-classification"
        return encoder_toy(toys, model_type, task, scheme)

    return of


def proved(model_dir, out, dtype="float16", edit=None):
    """The parities of the lowered file; `edit` changes both files of it first, as a wrong pass would."""
    model = Manifest.read(model_dir)
    out.mkdir(exist_ok=True)
    lowered = write_encoder(
        model_dir / "model.onnx", model, out, {"dtype": dtype, "max_batch": 4, "max_length": model.model.max_positions}
    )
    for path in (lowered.path, lowered.float32) if edit is not None else ():
        graph = ir.load(path)
        edit(graph.graph)
        ir.save(graph, path.with_name("edited.onnx"))
        path.with_name("edited.onnx").replace(path)
    with reference_of(model_dir / "model.onnx", model, out) as reference:
        return prove_encoder(write_exposed(reference, out / "exposed"), model, lowered)


@pytest.mark.parametrize("model_type", TYPES)
def test_an_encoder_is_lowered_and_gives_what_the_canonical_graph_gives(model_type, encoder_dir, tmp_path):
    model_dir = encoder_dir(model_type)
    for parity in proved(model_dir, tmp_path):
        assert parity["relative"] <= MOST_LOST[parity["dtype"]]
        assert (parity["shortest"], parity["longest"]) == (1, Manifest.read(model_dir).model.max_positions)
        assert (parity["layers"] > 0) == (parity["dtype"] == "float16")


@pytest.mark.parametrize(
    ("model_type", "scheme"),
    [
        ("bert", "w8a8"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("modernbert", "w8a8"), ("bert", "w8"), ("bert", "w4")]
        ),
    ],
)
def test_a_scheme_is_proved_and_compiled(model_type, scheme, encoder_dir, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    model_dir, bundle = encoder_dir(model_type, scheme), tmp_path / "bundle"
    arguments = ["build", str(model_dir), "-o", str(bundle), "--target", RTX, "--max-batch", "4", "--no-cache"]
    assert main([*arguments, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"{RTX}: tensorrt_rtx 1.7.1.116 for sm89; float16, batch up to 4, length up to {LENGTH}; " in out
    assert f"rows of 1 to {LENGTH} tokens" in out
    (spec,) = Manifest.read(bundle).engines
    got, share = spec.actual, {"w8a8": "int8", "w8": "weights8", "w4": "weights4"}[scheme]
    assert (spec.files, spec.states) == ({"encoder": "tensorrt-rtx-sm89/engine.plan"}, {"encoder": ()})
    assert got["linears"][share] > 0.9
    assert [parity["dtype"] for parity in got["parities"]] == ["float32", "float16"]
    assert all((parity["activations"] > 0) == (scheme == "w8a8") for parity in got["parities"])
    assert got["profiles"] == {
        "rows": {
            name: [[1, 1], [4, LENGTH], [4, LENGTH]] if name != "lengths" else [[1], [4], [4]]
            for name in got["profiles"]["rows"]
        }
    }
    assert got["io"]["logits"] == {"mode": "output", "dtype": "float32", "shape": ["batch", "seq", 2]}
    header = PlanHeader.read(bundle / spec.path)
    assert (header.compiler, header.compute_capabilities) == ("tensorrt_rtx", ("sm89",))


@pytest.mark.slow
@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "deberta-v2", "mpnet", "llama", "mistral"])
def test_the_compiler_builds_every_task(task, model_type, toys, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    if model_type not in CASES[task]:
        pytest.skip("no such model")
    (spec,) = build(encoder_toy(toys, model_type, task), tmp_path / "bundle", [RTX], max_batch=2).engines
    assert PlanHeader.read(tmp_path / "bundle" / spec.path).compute_capabilities == ("sm89",)


def test_bfloat16_is_proved_by_rounding_every_result(encoder_dir, tmp_path):
    float32, narrow = proved(encoder_dir("bert"), tmp_path, "bfloat16")
    assert float32["relative"] < 1e-5 < narrow["relative"] < 0.05


def test_a_model_beyond_float16_is_refused_in_float16_with_the_node(encoder_dir, tmp_path):
    wide = tmp_path / "model"
    wide.mkdir()
    graph = ir.load(encoder_dir("bert") / "model.onnx")
    product = next(node for node in graph.graph if "intermediate.dense" in node.name and node.op_type == "MatMul")
    weight = product.inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 5e4, name=weight.name)
    ir.save(graph, wide / "model.onnx", external_data="model.onnx.data")
    Manifest.read(encoder_dir("bert")).write(wide)
    with pytest.raises(ParityError, match=r"intermediate\.dense/MatMul.* reaches [\d.e+]+, beyond float16"):
        proved(wide, tmp_path / "out")


def longer(graph):
    """Every row is taken for one token longer: padding is seen."""
    for node in [node for node in graph if node.op_type == "TRT_Attention"]:
        one = ir.tensor(np.array([1]), name=f"{node.name}.one")
        value = ir.Value(name=one.name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]), const_value=one)
        graph.register_initializer(value)
        more = ir.node("Add", [node.inputs[5], value], name=f"{node.name}/more")
        more.outputs[0].type, more.outputs[0].shape = node.inputs[5].type, node.inputs[5].shape
        graph.insert_before(node, more)
        node.replace_input_with(5, more.outputs[0])


def shrunk(graph):
    """The scale of the second attention's query."""
    attentions = [node for node in graph if node.op_type == "TRT_Attention"]
    value = attentions[1].inputs[0].producer().inputs[1]
    value.const_value = ir.tensor(value.const_value.numpy() * np.array(1.05, value.const_value.numpy().dtype))


@pytest.mark.parametrize(
    ("edit", "node"), [(longer, r"layer\.0\.attention.*TRT_Attention"), (shrunk, r"layer\.1\.attention.*Attention")]
)
def test_a_wrong_file_is_found_and_its_node_named(edit, node, encoder_dir, tmp_path):
    with pytest.raises(ParityError, match=rf"In float32: .*The first to differ is .*{node}"):
        proved(encoder_dir("bert"), tmp_path, edit=edit)
    assert sorted(path.name for path in (tmp_path / "float32").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_int4_weights_under_int8_activations_are_refused_by_name(encoder_dir, tmp_path):
    graph = ir.load(encoder_dir("bert", "w8a8") / "model.onnx")
    weights = [node for node in graph.graph if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer()]
    codes = weights[0].inputs[0]
    codes.const_value = ir.tensor(codes.const_value.numpy() // 16, dtype=ir.DataType.INT4, name=codes.name)
    codes.dtype = ir.DataType.INT4
    ir.save(graph, tmp_path / "model.onnx", external_data="model.onnx.data")
    Manifest.read(encoder_dir("bert", "w8a8")).write(tmp_path)
    with pytest.raises(EngineError, match="multiplies INT8 activations by INT4 weights"):
        proved(tmp_path, tmp_path / "out")


def test_an_option_of_language_models_is_refused(encoder_dir, tmp_path):
    with pytest.raises(MisuseError, match="--lm-head is for language models"):
        build(encoder_dir("bert"), tmp_path / "bundle", [RTX], lm_head="float32")
