import onnx_ir as ir
import pytest
from encoders import encoder_toy

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import EngineError, MisuseError, ParityError
from piston.engines import build
from piston.engines.equivalence import half_precision as check_half_precision
from piston.engines.lowering import ort_cuda as lowering
from piston.engines.ort import cuda as build_ort_cuda


@pytest.fixture(scope="module")
def model_of(toys):
    """The toy in a scheme."""
    return lambda scheme: toys.model_dir(scheme=scheme)


@pytest.fixture(scope="module")
def bundle_of(toys):
    return lambda scheme: toys.bundle(("ort-cuda",), scheme=scheme, build={"max_batch": 3, "max_length": 50})


@pytest.mark.parametrize(("scheme", "share"), [("fp", "float"), ("w8", "weights8"), ("w4", "weights4")])
def test_a_scheme_is_built_proved_and_described(bundle_of, scheme, share):
    (engine,) = Manifest.read(bundle_of(scheme)).engines
    assert (engine.target, engine.path, engine.cache.dtype) == ("ort-cuda", "ort-cuda/model.onnx", "float16")
    assert engine.actual["attention_fused"] == 2
    assert engine.actual["linears"][share] > 0.99
    assert engine.actual["parity"]["max_abs"] < 1e-4
    assert 0 < engine.actual["proof_narrow"]["max_relative"] < 0.01
    assert engine.actual["run_on_gpu"] is False


@pytest.mark.parametrize("scheme", ["fp", "w8", "w4"])
def test_nothing_but_logits_and_statistics_leaves_the_narrow_type(bundle_of, scheme):
    graph = ir.load(bundle_of(scheme) / "ort-cuda/model.onnx").graph
    types = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert types.pop("logits") == ir.DataType.FLOAT
    assert {str(dtype) for name, dtype in types.items() if name.startswith(("past.", "present."))} == {"FLOAT16"}
    wide = {node.op_type for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    assert wide <= {"Cast", "RMSNormalization", "Range"}


def test_the_command_line_says_what_was_built(model_dir, tmp_path, capsys):
    arguments = ["build", str(model_dir), "-o", str(tmp_path / "out"), "--target", "ort-cuda", "--max-length", "50"]
    assert main([*arguments, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "ort-cuda: float16, cache float16, batch up to 8, length up to 50; " in said
    assert "attention fused in 2 of 2 (rotary in 2, packed in 2), 4 residual norms" in said
    assert "linears: 100.0% in float; lm_head in float\nparity: logits within" in said


def test_lengths_that_kernels_read_on_the_host_come_as_an_input(bundle_of):
    """A CUDA graph cannot bring them there."""
    graph = ir.load(bundle_of("fp") / "ort-cuda/model.onnx").graph
    total = next(value for value in graph.inputs if value.name == "total_sequence_length")
    assert (total.dtype, list(total.shape)) == (ir.DataType.INT32, [])
    assert {node.op_type for node, _ in total.uses()} == {"GroupQueryAttention"}


def test_int8_activations_are_refused_by_name(model_of, tmp_path):
    with pytest.raises(
        EngineError, match=r"q_proj.* multiplies INT8 activations.*no CUDA kernel; build it for tensorrt"
    ):
        build(model_of("w8a8"), tmp_path / "out", ["ort-cuda"], max_length=50)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("ort-cuda:sm89", {}, "There is no target 'ort-cuda:sm89'"),
        ("ort-cuda", {"lm_head": "int8"}, "--lm-head int8 is not for ort-cuda"),
        ("ort-cuda", {"dtype": "bf16"}, "--dtype is for ort-cpu:avx512 and TensorRT targets"),
    ],
)
def test_what_it_has_not_got_is_refused(model_dir, tmp_path, target, options, said):
    with pytest.raises(MisuseError, match=said):
        build(model_dir, tmp_path / "out", [target], **options)


def test_a_float16_file_that_computes_something_else_is_not_written(model_dir, tmp_path, monkeypatch):
    def tampered(canonical, out, max_length, dtype):
        model = ir.load(canonical)
        counts = lowering.lower_for_ort_cuda(model, max_length, dtype)
        if dtype == "float16":
            attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
            attention.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
        ir.save(model, out / "model.onnx", external_data="model.onnx.data")
        return counts

    monkeypatch.setattr(build_ort_cuda, "_write", tampered)
    with pytest.raises(ParityError, match="differs from its float32 reference in its attributes"):
        build(model_dir, tmp_path / "out", ["ort-cuda"], max_length=50)
    assert not (tmp_path / "out").exists()


def test_answers_that_are_too_far_apart_fail_the_proof_in_float16(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(check_half_precision, "BOUND", 1e-5)
    with pytest.raises(ParityError, match=r"In float16 the logits of a prefill of 2 tokens are .* apart"):
        build(model_dir, tmp_path / "out", ["ort-cuda"], max_length=50)


def test_a_model_beyond_float16_is_refused_with_the_targets_that_have_another_type(wide_model_dir, tmp_path):
    with pytest.raises(EngineError, match=r"beyond float16, and ort-cuda has no other type; fix: .*--dtype bf16"):
        build(wide_model_dir, tmp_path / "out", ["ort-cuda"], max_length=50)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_is_built_proved_and_opened(toys, tmp_path, capsys, monkeypatch):
    """The provider is the CPU's here: what is tested is the file, and how it is opened."""
    from machines import gpu, machine_with

    from piston.runtime import load
    from piston.runtime.backends import ort_cuda, registry

    bundle = tmp_path / "bundle"
    arguments = ["build", str(encoder_toy(toys, "bert", "text-classification")), "-o", str(bundle), "--quiet"]
    assert main([*arguments, "--target", "ort-cpu", "--target", "ort-cuda"]) == 0
    assert "parity in float16, on ONNX Runtime's CPU kernels: outputs within" in capsys.readouterr().out
    engine = Manifest.read(bundle).engines[1]
    assert (engine.files, engine.actual["attention_layers"]) == ({"encoder": "ort-cuda/model.onnx"}, 2)
    assert [parity["dtype"] for parity in engine.actual["parities"]] == ["float32", "float16"]
    monkeypatch.setattr(ort_cuda, "PROVIDER", "CPUExecutionProvider")
    machine = machine_with(gpu("sm90"), providers=("CUDAExecutionProvider",))
    monkeypatch.setattr(registry, "Machine", lambda: machine)
    scores = []
    for target in ("ort-cpu", "ort-cuda"):
        with load(bundle, target=target) as model:
            scores.append([{found.label: found.score for found in row} for row in model.classify(["wo", "in paris"])])
    assert all(one == pytest.approx(other, abs=5e-3) for one, other in zip(*scores, strict=True))


def test_an_encoders_weights_stay_in_8_bits(toys, tmp_path):
    model_dir = encoder_toy(toys, "bert", "token-classification", "w8")
    (engine,) = build(model_dir, tmp_path / "bundle", ["ort-cuda"]).engines
    assert engine.actual["linears"]["weights8"] > 0.9


def test_an_encoder_with_int8_activations_is_refused_by_name(toys, tmp_path):
    model_dir = encoder_toy(toys, "bert", "token-classification", "w8a8")
    with pytest.raises(EngineError, match="multiplies INT8 activations, for which ONNX Runtime has no CUDA kernel"):
        build(model_dir, tmp_path / "bundle", ["ort-cuda"])
