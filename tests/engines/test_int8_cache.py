import dataclasses
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import operators
from quantized import round_cache

from piston.engines import build
from piston.engines.build_ort import build_ort
from piston.engines.prove import prove
from piston.runtime import Sampling, load
from piston.runtime.errors import EngineError, ParityError
from piston.runtime.manifest import Manifest, record_files
from piston.runtime.ort_engine import OrtEngine

MAX_LENGTH = 64


def scales_of(cache, *, per_channel):
    rng = np.random.default_rng(0)
    shape = (1, cache.num_kv_heads, 1, cache.head_dim) if per_channel else ()
    names = [f"present.{layer}.{part}" for layer in range(cache.num_layers) for part in ("key", "value")]
    return {name: np.asarray(rng.uniform(0.02, 0.04, shape), np.float32) for name in names}


def rounded(source, out, cache, *, per_channel=False, change=None):
    model = ir.load(source)
    round_cache(model, scales_of(cache, per_channel=per_channel))
    if change is not None:
        change(model)
    out.mkdir(parents=True, exist_ok=True)
    ir.save(model, out / "model.onnx", external_data="model.onnx.data")
    return out / "model.onnx"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt2", "gemma2"])
def test_the_kernel_rounds_as_the_canonical_graph_does(toy, tmp_path, name, per_channel):
    canonical = toy(name)
    path = rounded(canonical.path, tmp_path / "model", canonical.cache, per_channel=per_channel)
    built = build_ort(path, tmp_path / "engine", MAX_LENGTH)
    assert built.cache_type == "int8"
    assert "QuantizeLinear" not in built.operators
    cache = dataclasses.replace(canonical.cache, dtype="int8")
    proof = prove(path, built.path, cache, max_length=MAX_LENGTH, windows=built.lowered.windows)
    assert proof.max_abs < proof.bound / 2


@pytest.mark.parametrize("index", [12, 13])
def test_a_wrong_scale_of_the_cache_is_found(toy, tmp_path, index):
    canonical = toy("llama")
    path = rounded(canonical.path, tmp_path / "model", canonical.cache)
    built = build_ort(path, tmp_path / "engine", MAX_LENGTH)
    model = ir.load(built.path)
    node = [node for node in model.graph if node.op_type == "GroupQueryAttention"][1]
    wrong = ir.tensor(node.inputs[index].const_value.numpy() * np.float32(1.03), name="wrong")
    value = ir.Value(name="wrong", const_value=wrong, shape=wrong.shape, type=ir.TensorType(wrong.dtype))
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
    ir.save(model, built.path)
    part = "values" if index == 13 else "keys"
    with pytest.raises(ParityError, match=rf"of layer 1's {part} have another code"):
        prove(path, built.path, dataclasses.replace(canonical.cache, dtype="int8"), max_length=MAX_LENGTH)


def test_one_layer_that_is_not_rounded_leaves_the_cache_in_float(toy, tmp_path):
    def unround(model):
        scatter = next(node for node in model.graph if node.op_type == "TensorScatter")
        scatter.replace_input_with(1, scatter.inputs[1].producer().inputs[0].producer().inputs[0])
        ir.passes.common.RemoveUnusedNodesPass()(model)

    canonical = toy("llama")
    path = rounded(canonical.path, tmp_path / "model", canonical.cache, change=unround)
    built = build_ort(path, tmp_path / "engine", MAX_LENGTH)
    assert (built.cache_type, built.lowered.fused_attention) == ("float32", 2)
    assert operators(ir.load(built.path))["QuantizeLinear"] == 3


def test_a_bundle_with_an_int8_cache_generates(model_dir, tmp_path):
    model = Manifest.read(model_dir)
    rounded(model_dir / "model.onnx", tmp_path / "model", model.cache)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(model_dir / name, tmp_path / "model" / name)
    dataclasses.replace(model, files=record_files(tmp_path / "model")).write(tmp_path / "model")
    manifest = build(tmp_path / "model", tmp_path / "bundle")
    assert (manifest.engines[0].cache.dtype, manifest.engines[0].got["cache"]) == ("int8", "int8")
    assert manifest.engines[0].cache.bytes_per_token == 2 * 2 * 2 * 16
    with load(tmp_path / "bundle") as opened:
        assert opened.generate("hello", Sampling(max_tokens=5)).token_ids
    with pytest.raises(EngineError, match="is not float32, as its manifest states"):
        OrtEngine.open(tmp_path / "bundle/ort-cpu/model.onnx", model.cache, num_slots=1, capacity=8)
