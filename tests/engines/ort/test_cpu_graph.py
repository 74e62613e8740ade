import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from own_kernels import need_kernels
from zoo import WINDOW

from piston.core.errors import EngineError
from piston.engines.equivalence.answers import check_parity
from piston.engines.ort.cpu_graph import build_ort, count_operators, save_optimized
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions
from piston.runtime.kernels import require

MAX_LENGTH = 64
WIDE = {"head_dim": 32}  # partial rotary of 16 elements: the narrowest the kernel takes

# name: (model type, overrides, of two layers: rotary fused, qkv packed; norms fused, windows)
ARCHITECTURES = {
    "llama": ("llama", {}, 2, 2, 4, ()),
    "mistral": ("mistral", {}, 2, 2, 4, (WINDOW,)),
    "qwen3": ("qwen3", {}, 2, 0, 4, ()),
    "gemma3": ("gemma3_text", {}, 2, 0, 4, (WINDOW,)),
    "phi3": ("phi3", WIDE, 2, 2, 4, ()),
    "gpt2": ("gpt2", {}, 0, 2, 5, ()),
    "gpt_neox": ("gpt_neox", {"hidden_size": 128, **WIDE}, 2, 2, 2, ()),
    "gpt_neox with tables the kernel refuses": ("gpt_neox", {}, 0, 0, 2, ()),
    "olmo2": ("olmo2", {}, 2, 0, 1, ()),
    "smollm3": ("smollm3", {}, 1, 2, 4, ()),
    "starcoder2": ("starcoder2", {}, 2, 2, 4, (WINDOW,)),
    "cohere": ("cohere", {}, 2, 2, 2, ()),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_attention_is_fused_and_the_answers_stay(name, toy, tmp_path):
    model_type, overrides, rotary, packed, norms, windows = ARCHITECTURES[name]
    canonical = toy(model_type, **overrides)
    built = build_ort(canonical.path, tmp_path, MAX_LENGTH)
    lowered = built.lowered
    assert (lowered.fused_attention, lowered.attention, lowered.refused) == (2, 2, {})
    assert (lowered.fused_rotary, lowered.packed_qkv, lowered.fused_norms) == (rotary, packed, norms)
    assert lowered.windows == windows
    parity = check_parity(canonical.path, built.path, canonical.cache, max_length=MAX_LENGTH, windows=windows)
    assert parity.max_abs <= 2e-5 < parity.bound
    assert not windows or parity.prompt_lengths[-1] > WINDOW + parity.steps


def test_an_attention_that_does_not_fit_stays_and_is_named(toy, tmp_path):
    canonical = toy("diffllama")
    built = build_ort(canonical.path, tmp_path, MAX_LENGTH)
    assert (built.lowered.fused_attention, built.lowered.attention) == (0, 4)
    assert built.lowered.refused["model.layers.0.self_attn/Attention"] == "its keys have other readers"
    assert check_parity(canonical.path, built.path, canonical.cache, max_length=MAX_LENGTH).max_abs <= 2e-5


def test_the_file_holds_onnx_runtimes_own_fusions(toy, tmp_path):
    built = build_ort(toy("llama").path, tmp_path, MAX_LENGTH)
    assert built.operators["QuickGelu"] == 2
    assert "Sigmoid" not in built.operators
    assert built.operators == {
        "MatMul": 13 - 2,  # gate, up, down, output and packed qkv of two layers, lm_head
        "SkipSimplifiedLayerNormalization": 4,
        "Cast": 2,
        "GroupQueryAttention": 2,
        "Mul": 2,
        "QuickGelu": 2,
        "Gather": 1,
        "GatherND": 1,
        "RMSNormalization": 1,
        "ReduceMax": 1,
        "Sub": 1,
        "Unsqueeze": 1,
    }


def test_onnx_runtime_has_nothing_left_to_do_at_load(toy, tmp_path):
    canonical = toy("llama")
    built = build_ort(canonical.path, tmp_path / "engine", MAX_LENGTH)
    (tmp_path / "again").mkdir()
    save_optimized(built.path, tmp_path / "again/model.onnx")
    assert count_operators(tmp_path / "again/model.onnx") == built.operators
    logits = []
    for optimize in (False, True):
        options = OrtOptions(optimize=optimize)
        engine = OrtEngine.open(built.path, canonical.cache, num_slots=1, capacity=16, options=options)
        logits.append(engine.prefill(engine.cache.admit(), [3, 4, 5, 6], num_logits=4).copy())
    np.testing.assert_array_equal(*logits)


def test_a_build_does_not_depend_on_kernels_that_the_process_has_loaded(toy, tmp_path):
    """ONNX Runtime names every domain it knows in what it writes."""
    need_kernels()
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(require()))
    onnxruntime.InferenceSession(str(toy("llama").path), options, providers=["CPUExecutionProvider"])
    path = build_ort(toy("llama").path, tmp_path, MAX_LENGTH).path
    assert "piston" not in ir.load(path).opset_imports
    assert "com.microsoft" in ir.load(path).opset_imports


def test_a_tied_embedding_is_stored_once(toy, tmp_path):
    canonical = toy("gpt2")
    built = build_ort(canonical.path, tmp_path, MAX_LENGTH)
    assert built.operators["FusedMatMul"] == 1
    assert built.weights_bytes <= (canonical.path.parent / "model.onnx.data").stat().st_size


def test_rotary_tables_end_at_the_length_that_was_asked(toy, tmp_path):
    built = build_ort(toy("llama").path, tmp_path, 20)
    tables = [value for name, value in ir.load(built.path).graph.initializers.items() if "rotary" in name]
    assert [list(table.shape) for table in tables] == [[20, 8], [20, 8]]


def test_two_builds_in_two_places_are_the_same_bytes(toy, tmp_path):
    path = toy("gemma3_text").path
    one, other = (build_ort(path, tmp_path / place, MAX_LENGTH).path.parent for place in ("here", "far/away"))
    for name in ("model.onnx", "model.onnx.data"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert sorted(item.name for item in one.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_no_path_of_this_machine_is_in_the_file(toy, tmp_path):
    built = build_ort(toy("llama").path, tmp_path, MAX_LENGTH)
    assert str(tmp_path).encode() not in built.path.read_bytes()


def test_the_engine_moves_with_its_weights(toy, tmp_path):
    canonical = toy("llama")
    build_ort(canonical.path, tmp_path / "before", MAX_LENGTH)
    (tmp_path / "before").rename(tmp_path / "after")
    engine = OrtEngine.open(tmp_path / "after/model.onnx", canonical.cache, num_slots=1, capacity=8)
    assert engine.prefill(engine.cache.admit(), [3, 4, 5]).shape == (1, 131)


def test_a_graph_onnx_runtime_refuses_is_an_engine_error(toy, tmp_path):
    model = ir.load(toy("llama").path)
    next(node for node in model.graph if node.op_type == "GatherND").op_type = "NoSuchOperator"
    ir.save(model, tmp_path / "broken.onnx", external_data="broken.onnx.data")
    with pytest.raises(EngineError, match="optimizing"):
        build_ort(tmp_path / "broken.onnx", tmp_path / "engine", MAX_LENGTH)
