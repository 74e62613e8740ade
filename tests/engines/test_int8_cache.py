import dataclasses
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import operators
from quantized import quantize, round_cache

from piston.core.bundle.manifest import Manifest, record_files
from piston.core.errors import EngineError, ParityError
from piston.engines import build
from piston.engines.equivalence.activation_injection import add_activation_outputs
from piston.engines.equivalence.answers import check_parity
from piston.engines.equivalence.int8_cache_lockstep import CacheTape
from piston.engines.ort.cpu_graph import build_ort
from piston.runtime import SamplingParams, load
from piston.runtime.backends.ort_cpu import OrtEngine

MAX_LENGTH = 64


def scales_of(cache, *, per_channel):
    rng = np.random.default_rng(0)
    shape = cache.states[0].sizes(1, 1) if per_channel else ()
    names = [state.output for state in cache.states]
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
    cache = canonical.cache.with_dtype("int8")
    parity = check_parity(path, built.path, cache, max_length=MAX_LENGTH, windows=built.lowered.windows)
    assert parity.max_abs < parity.bound / 2
    assert parity.activations == canonical.cache.num_layers
    assert 0.3 < parity.code_distance < 0.51


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8 remainder", "w8", "w4"])
def test_linears_may_be_in_integers_too(toy, tmp_path, scheme):
    canonical = toy("llama")
    path = quantize(canonical.path, tmp_path / "linears", canonical.cache, scheme)
    path = rounded(path, tmp_path / "model", canonical.cache, per_channel=True)
    built = build_ort(path, tmp_path / "engine", MAX_LENGTH)
    files = sorted(tmp_path.rglob("*"))
    parity = check_parity(path, built.path, canonical.cache.with_dtype("int8"), max_length=MAX_LENGTH)
    assert parity.activations >= canonical.cache.num_layers
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_cache_of_heads_that_are_not_fused_is_rounded_where_the_canonical_graph_rounds_it(toy, tmp_path, per_channel):
    canonical = toy("llama", head_dim=20, hidden_size=80)
    path = quantize(canonical.path, tmp_path / "linears", canonical.cache, "w8a8")
    path = rounded(path, tmp_path / "model", canonical.cache, per_channel=per_channel)
    built = build_ort(path, tmp_path / "engine", MAX_LENGTH)
    assert built.cache_type == "float32"
    assert all("head_dim 20" in reason for reason in built.lowered.refused.values())
    model = ir.load(path)
    add_activation_outputs(model)
    ir.save(model, path.with_name("exposed.onnx"), external_data="exposed.onnx.data")
    parity = check_parity(path.with_name("exposed.onnx"), built.path, canonical.cache, max_length=MAX_LENGTH)
    assert parity.activations == 8 + 2 * canonical.cache.num_layers  # what linears read, and each cache


@pytest.fixture(scope="module")
def engines(toy, tmp_path_factory):
    """A llama whose cache is rounded per tensor and per channel, and a mistral's: canonical and built graph."""
    made = {}
    for name, per_channel in (("llama", False), ("llama", True), ("mistral", True)):
        root, canonical = tmp_path_factory.mktemp("engines"), toy(name)
        path = rounded(canonical.path, root / "model", canonical.cache, per_channel=per_channel)
        built = build_ort(path, root / "engine", MAX_LENGTH)
        made[name, per_channel] = canonical.cache, path, built
    return made


def prove_broken(engines, name, per_channel, out, change):
    cache, path, built = engines[name, per_channel]
    model = ir.load(built.path)
    change([node for node in model.graph if node.op_type == "GroupQueryAttention"][1])
    shutil.copyfile(built.path.parent / "model.onnx.data", out / "model.onnx.data")
    ir.save(model, out / "model.onnx")
    cache = cache.with_dtype("int8")
    check_parity(path, out / "model.onnx", cache, max_length=MAX_LENGTH, windows=built.lowered.windows)


def scaled(index, factor):
    """Multiply the scales of a GroupQueryAttention's keys (12) or values (13)."""

    def change(node):
        tensor = ir.tensor(node.inputs[index].const_value.numpy() * np.asarray(factor, np.float32), name="wrong")
        value = ir.Value(name="wrong", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        node.graph.register_initializer(value)
        node.replace_input_with(index, value)

    return change


@pytest.mark.parametrize("factor", [0.995, 1.005])
@pytest.mark.parametrize(("index", "part"), [(12, "key"), (13, "value")])
@pytest.mark.parametrize("engine", [("llama", False), ("llama", True), ("mistral", True)])
def test_scales_half_a_per_cent_off_are_found_and_the_layer_named(engines, tmp_path, engine, index, part, factor):
    with pytest.raises(ParityError, match=rf"a code of present\.1\.{part} is \S+ steps from"):
        prove_broken(engines, *engine, tmp_path, scaled(index, factor))


@pytest.mark.parametrize(("index", "part"), [(12, "key"), (13, "value")])
def test_one_channel_half_a_per_cent_off_is_found(engines, tmp_path, index, part):
    factors = np.ones((1, 2, 1, 16))
    factors[0, 1, 0, 5] = 1.005
    with pytest.raises(ParityError, match=rf"present\.1\.{part}|layer 1's attention"):
        prove_broken(engines, "llama", True, tmp_path, scaled(index, factors))


def test_scores_half_a_per_cent_off_are_found_and_the_layer_named(engines, tmp_path):
    def change(node):
        node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].as_float() * 1.005)

    with pytest.raises(ParityError, match="the result of layer 1's attention differs by"):
        prove_broken(engines, "llama", True, tmp_path, change)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_window_off_by_one_is_found_with_codes_that_all_agree(engines, tmp_path, by):
    def change(node):
        window = node.attributes["local_window_size"].as_int()
        node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", window + by)

    with pytest.raises(ParityError, match="the result of layer 1's attention differs by"):
        prove_broken(engines, "mistral", True, tmp_path, change)


def test_codes_that_are_one_too_high_are_found(engines, monkeypatch, tmp_path):
    record = CacheTape.record

    def record_and_change(tape, run):
        given = record(tape, run)
        given["present.1.value"][0, 0, 0] += 1
        run.cache.arrays[3][0, 0, 0] += 1
        return given

    monkeypatch.setattr(CacheTape, "record", record_and_change)
    with pytest.raises(ParityError, match=r"a code of present\.1\.value"):
        prove_broken(engines, "llama", False, tmp_path, lambda node: None)


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
    assert (manifest.engines[0].cache.dtype, manifest.engines[0].actual["cache"]) == ("int8", "int8")
    assert manifest.engines[0].cache.bytes_per_token == 2 * 2 * 2 * 16
    with load(tmp_path / "bundle") as opened:
        assert opened.generate("hello", SamplingParams(max_tokens=5)).token_ids
    with pytest.raises(EngineError, match="is not float32, as its manifest states"):
        OrtEngine.open(tmp_path / "bundle/ort-cpu/model.onnx", model.cache, num_slots=1, capacity=8)
