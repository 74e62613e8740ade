"""The target ort-cpu:avx512: made from ort-cpu's engine, proved against it, and refused where it cannot run."""

import shutil
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from own_kernels import need_kernels
from quantized import quantize, round_cache

from piston.bench.profile import profile
from piston.bench.workload import Setting, Work
from piston.core.console import Progress
from piston.core.errors import EngineError, MissingExtraError, MisuseError, ParityError
from piston.engines import build
from piston.engines.equivalence import replaced_nodes as prove_replaced_module
from piston.engines.equivalence.replaced_nodes import check_replaced
from piston.engines.ort.cpu_graph import build_ort
from piston.engines.ort.cpu_kernels import build_kernels
from piston.runtime import SamplingParams, kernels, load
from piston.runtime.backends.registry import select_engine
from piston.runtime.bundle import Bundle

MAX_LENGTH = 128
FITTING = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
}


@pytest.fixture(scope="module")
def built(toy, tmp_path_factory):
    """A w8a8 llama of sizes that the kernels take, as ort-cpu's engine and as their own."""
    need_kernels()
    canonical = toy("llama", **FITTING)
    root = tmp_path_factory.mktemp("own")
    path = quantize(canonical.path, root / "model", canonical.cache, "w8a8")
    plain = build_ort(path, root / "plain", MAX_LENGTH)
    return plain, build_kernels(plain.path, root / "kernels"), canonical.cache


def test_every_group_of_nodes_is_replaced(built):
    _, own, _ = built
    assert (own.attention, own.linears, own.gated) == (2, 6, 2)  # qkv, o, down of two layers
    assert own.norms == 4  # the first has no residual, the last is not rounded
    left = {node.op_type for node in ir.load(own.path).graph if node.domain == "com.microsoft"}
    assert not left & {"GroupQueryAttention", "MatMulIntegerToFloat", "QuickGelu"}


def test_kernels_give_what_they_replaced_gave(built):
    plain, own, cache = built
    parity = check_replaced(plain.path, own.path, cache, max_length=MAX_LENGTH)
    assert parity.kernels == 14  # the head of this one is in float
    assert parity.max_relative < 2e-5
    assert parity.codes_apart < 5e-3


def test_outliers_are_given_and_added_by_the_products_themselves(toy, tmp_path):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, "w8a8", outliers=5)
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    own = build_kernels(plain.path, tmp_path / "kernels")
    found = Counter((node.op_type, len(node.inputs), len(node.outputs)) for node in ir.load(own.path).graph)
    assert found["GatedLinearCodes", 6, 2] == 2
    assert found["IntegerLinear", 7, 1] == 2
    parity = check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)
    assert parity.max_relative < 2e-5
    assert parity.codes_apart < 5e-3


def test_remainders_are_given_and_added_by_the_products_themselves(toy, tmp_path):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, "w8a8 remainder", outliers=5)
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    assert plain.work.unfused == {}
    own = build_kernels(plain.path, tmp_path / "kernels")
    assert (own.linears, own.gated) == (6, 2)
    nodes = list(ir.load(own.path).graph)
    found = Counter((node.op_type, len(node.inputs), len(node.outputs)) for node in nodes)
    assert found["GatedLinearCodes", 7, 3] == 2
    assert found["IntegerLinear", 9, 1] == 2
    assert not [node.name for node in nodes if node.op_type == "MatMulIntegerToFloat" or "remainder" in node.name]
    parity = check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)
    assert parity.max_relative < 2e-5
    assert parity.codes_apart < 5e-3


def test_remainders_without_outliers_leave_no_output_that_nobody_asked_for(toy, tmp_path):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, "w8a8 remainder")
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    assert plain.work.share("int8") == 1
    own = build_kernels(plain.path, tmp_path / "kernels")
    gated = [node for node in ir.load(own.path).graph if node.op_type == "GatedLinearCodes"]
    assert [[bool(output.name) for output in node.outputs] for node in gated] == [[True, False, True]] * 2
    check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)


def test_the_proof_leaves_nothing_behind(built):
    plain, own, cache = built
    check_replaced(plain.path, own.path, cache, max_length=MAX_LENGTH)
    for engine in (plain, own):
        assert sorted(path.name for path in engine.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(
    ("op_type", "index", "change"),
    [
        ("IntegerLinear", 1, lambda tiles: np.roll(tiles, 1, axis=1)),
        ("IntegerLinear", 2, lambda offset: offset + 128),
        ("IntegerLinear", 3, lambda scale: scale * np.float32(1.001)),
        ("GatedLinearCodes", 1, lambda tiles: tiles[::-1].copy()),
        ("GatedLinearCodes", 4, lambda scale: scale * np.float32(1.02)),
        ("NormCodes", 2, lambda weight: weight * np.float32(1.02)),
        ("AttentionCodes", 4, lambda cos: np.roll(cos, 1, axis=0)),
    ],
)
def test_a_wrong_constant_is_found(built, op_type, index, change):
    plain, own, cache = built
    model = ir.load(own.path)
    node = [node for node in model.graph if node.op_type == op_type][-1]
    array = change(node.inputs[index].const_value.numpy())
    wrong = ir.Value(
        name="wrong", const_value=ir.tensor(array), shape=ir.Shape(array.shape), type=node.inputs[index].type
    )
    model.graph.register_initializer(wrong)
    node.replace_input_with(index, wrong)
    path = own.path.with_name("wrong.onnx")
    ir.save(model, path)
    with pytest.raises(ParityError, match="differs from what it replaced"):
        check_replaced(plain.path, path, cache, max_length=MAX_LENGTH)
    path.unlink()


def with_int8_cache(source, root, cache, *, per_channel):
    """A graph with its cache rounded, as ort-cpu's engine and as the kernels' own, and that cache."""
    need_kernels()
    model = ir.load(source)
    shape = cache.states[0].sizes(1, 1) if per_channel else ()
    rng = np.random.default_rng(0)
    names = [state.output for state in cache.states]
    round_cache(model, {name: np.asarray(rng.uniform(0.02, 0.04, shape), np.float32) for name in names})
    (root / "rounded").mkdir()
    ir.save(model, root / "rounded/model.onnx", external_data="model.onnx.data")
    plain = build_ort(root / "rounded/model.onnx", root / "plain", MAX_LENGTH)
    own = build_kernels(plain.path, root / "kernels")
    assert (own.attention, plain.cache_type) == (2, "int8")
    return plain, own, cache.with_dtype("int8")


@pytest.fixture(scope="module")
def int8_cached(toy, tmp_path_factory):
    """A llama with an INT8 cache by channel, its linears in float or in integers, whose attention gives codes."""
    canonical, made = toy("llama", **FITTING), {}
    for scheme in ("fp", "w8a8"):
        root, path = tmp_path_factory.mktemp("int8"), canonical.path
        if scheme != "fp":
            path = quantize(path, root / "linears", canonical.cache, scheme)
        made[scheme] = with_int8_cache(path, root, canonical.cache, per_channel=True)
    return made


def prove_scaled(engines, out, index, factor):
    """The parity check of kernels of which the last attention has other scales of its keys (6) or values (7)."""
    plain, own, cache = engines
    model = ir.load(own.path)
    node = [node for node in model.graph if node.op_type.startswith("AttentionInt8")][-1]
    array = node.inputs[index].const_value.numpy() * np.float32(factor)
    other = ir.Value(name="other", const_value=ir.tensor(array), shape=ir.Shape(array.shape))
    other.type = node.inputs[index].type
    model.graph.register_initializer(other)
    node.replace_input_with(index, other)
    shutil.copyfile(own.path.with_name("model.onnx.data"), out / "model.onnx.data")
    ir.save(model, out / "model.onnx")
    return check_replaced(plain.path, out / "model.onnx", cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_int8_cache_is_written_as_before(toy, tmp_path, per_channel):
    canonical = toy("llama", **FITTING)
    plain, own, cache = with_int8_cache(canonical.path, tmp_path, canonical.cache, per_channel=per_channel)
    check_replaced(plain.path, own.path, cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize("scheme", ["fp", "w8a8"])
@pytest.mark.parametrize("index", [6, 7])
def test_a_key_or_value_on_an_edge_may_become_either_code(int8_cached, tmp_path, scheme, index):
    # a scale so little off moves only what lies on an edge, and there by the whole step that rounding may take
    parity = prove_scaled(int8_cached[scheme], tmp_path, index, 1 + 2e-5)
    assert 0 < parity.codes_apart < 5e-3


@pytest.mark.parametrize("scheme", ["fp", "w8a8"])
@pytest.mark.parametrize("index", [6, 7])
@pytest.mark.parametrize("factor", [0.995, 1.005])
def test_a_cache_scale_half_a_per_cent_off_is_found(int8_cached, tmp_path, scheme, index, factor):
    with pytest.raises(ParityError, match=r"differs from what it replaced at present\.1\.\w+: a code is"):
        prove_scaled(int8_cached[scheme], tmp_path, index, factor)


def test_a_code_beside_the_one_that_a_value_is_rounded_to_is_found(int8_cached, monkeypatch):
    replay = prove_replaced_module.Tape.replay

    def replay_one_higher(tape, run, given):
        states = run.states

        def one_higher():
            caches = states()
            caches["present.1.value"][0, 0, 0] += 1
            return caches

        run.states = one_higher
        replay(tape, run, given)

    monkeypatch.setattr(prove_replaced_module.Tape, "replay", replay_one_higher)
    plain, own, cache = int8_cached["fp"]
    with pytest.raises(ParityError, match=r"at present\.1\.value: a code is"):
        check_replaced(plain.path, own.path, cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize("scheme", ["w8", "w4", "w4 block 128"])
def test_weights_in_blocks_are_read_as_before(toy, tmp_path, scheme):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, scheme)
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH, int8_head=True)
    own = build_kernels(plain.path, tmp_path / "kernels")
    assert (own.blocks, own.gated, own.linears) == (6, 2, 0)  # qkv, o, down of two layers; the head is too narrow
    check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)
    model = ir.load(own.path)
    node = next(node for node in model.graph if node.op_type == "GatedBlockLinear")
    tiles = node.inputs[1].const_value.numpy()
    wrong = ir.Value(name="wrong", const_value=ir.tensor(np.roll(tiles, 1, axis=1)), type=node.inputs[1].type)
    model.graph.register_initializer(wrong)
    node.replace_input_with(1, wrong)
    ir.save(model, own.path.with_name("wrong.onnx"))
    with pytest.raises(ParityError, match="differs from what it replaced"):
        check_replaced(plain.path, own.path.with_name("wrong.onnx"), canonical.cache, max_length=MAX_LENGTH)


def test_copies_of_large_inputs_are_read_where_the_originals_lie(toy, tmp_path):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, "w4 block 128", wide=("v_proj",), split=32)
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    own = build_kernels(plain.path, tmp_path / "kernels")
    counted = Counter(node.op_type for node in ir.load(own.path).graph)
    assert (counted["SplitBlockLinear"], counted["SplitGatedBlockLinear"], counted["BlockLinear"]) == (2, 2, 4)
    before = Counter(node.op_type for node in ir.load(plain.path).graph)
    assert [before[name] - counted[name] for name in ("Concat", "Gather")] == [4, 4]
    check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize(
    ("scheme", "wide", "keep", "products"),
    [
        ("w4", ("k_proj", "v_proj", "up_proj"), (), {"BlockLinear": [3, 1, 1], "GatedBlockLinear": [2]}),
        ("w4", (), ("q_proj", "up_proj"), {"BlockLinear": [2, 1, 1, 1], "GatedBlockLinear": []}),
        ("w8a8", (), ("v_proj",), {"IntegerLinear": [1, 1, 1, 1]}),
    ],
)
def test_layers_of_several_widths_keep_their_attention_and_their_products(toy, tmp_path, scheme, wide, keep, products):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, scheme, keep, wide=wide)
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    own = build_kernels(plain.path, tmp_path / "kernels")
    assert own.attention == 2
    nodes = list(ir.load(own.path).graph)
    for op_type, parts in products.items():  # of each of two layers
        inputs = [len(node.inputs) // 2 if "Block" in op_type else 1 for node in nodes if node.op_type == op_type]
        assert sorted(inputs) == sorted(parts * 2)
    check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)


def test_linears_with_weights_alone_in_int8_stand_beside_integer_products(toy, tmp_path):
    need_kernels()
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, "w8a8 mixed")
    plain = build_ort(path, tmp_path / "plain", MAX_LENGTH)
    own = build_kernels(plain.path, tmp_path / "kernels")
    counted = Counter(node.op_type for node in ir.load(own.path).graph)
    assert counted["BlockLinear"] + counted["MatMulNBits"] == 2
    assert counted["MatMulIntegerToFloat"] == 0
    check_replaced(plain.path, own.path, canonical.cache, max_length=MAX_LENGTH)


def test_an_int8_cache_is_written_from_keys_and_values_of_their_own(toy, tmp_path):
    canonical = toy("llama", **FITTING)
    path = quantize(canonical.path, tmp_path / "linears", canonical.cache, "w8a8", ("k_proj",))
    plain, own, cache = with_int8_cache(path, tmp_path, canonical.cache, per_channel=True)
    check_replaced(plain.path, own.path, cache, max_length=MAX_LENGTH)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_what_the_kernels_do_not_take_stays(toy, tmp_path, name):
    need_kernels()
    plain = build_ort(toy(name).path, tmp_path / "plain", MAX_LENGTH)
    with pytest.raises(EngineError, match="build it for ort-cpu"):
        build_kernels(plain.path, tmp_path / "kernels")


def test_a_bundle_with_both_engines_takes_its_own_kernels(fitting_model_dir, tmp_path):
    need_kernels()
    manifest = build(fitting_model_dir, tmp_path / "bundle", ["ort-cpu", kernels.TARGET])
    assert [spec.path for spec in manifest.engines] == ["ort-cpu/model.onnx", "ort-cpu-avx512/model.onnx"]
    assert manifest.engines[1].actual["own_kernels"]["attention"] == 2
    answers = []
    for target in (kernels.TARGET, None):
        with load(tmp_path / "bundle", target=target) as model:
            answers.append(model.generate("hello", SamplingParams(max_tokens=8)).token_ids)
    assert answers[0] == answers[1]
    chosen, others = select_engine(Bundle.open(tmp_path / "bundle"))
    assert (chosen.target, list(others)) == (kernels.TARGET, ["ort-cpu"])


@pytest.mark.parametrize("head_dim", [20, 96, 100])
def test_heads_of_any_width_are_built_and_proved(model_dir_with_heads, head_dim, tmp_path):
    need_kernels()
    (engine,) = build(model_dir_with_heads(head_dim), tmp_path / "bundle", [kernels.TARGET]).engines
    assert engine.actual["own_kernels"]["attention"] == (2 if head_dim == 96 else 0)
    assert engine.actual["own_kernels"]["norms"] == 4


def test_a_node_that_was_not_replaced_reads_what_the_reference_computed(built):
    # a code on an edge may differ, and its reader would make a step of it that no kernel made
    _, own, _ = built
    model = ir.load(own.path)
    norm = next(node for node in model.graph if node.op_type == "NormCodes")
    codes = norm.outputs[0]
    reader = ir.node("Identity", [codes], name="left")
    reader.outputs[0].name, reader.outputs[0].type, reader.outputs[0].shape = "left", codes.type, codes.shape
    model.graph.insert_after(norm, reader)
    tape = prove_replaced_module.isolate(model)
    assert reader.inputs[0].name == f"{codes.name}.given"
    assert codes.name in tape.given


def test_a_profile_beyond_the_positions_of_an_engine_is_refused(fitting_model_dir, tmp_path):
    need_kernels()
    build(fitting_model_dir, tmp_path / "bundle", [kernels.TARGET], max_length=64)
    bundle, work = Bundle.open(tmp_path / "bundle"), Work(Setting(1, 60, 4), vocab_size=100)
    with pytest.raises(MisuseError, match="the engine was built for 64 positions"):
        profile(bundle, None, work, 2, Progress(quiet=True))


def test_without_a_library_the_reason_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "library_paths", lambda: [tmp_path / "none.so"])
    kernels.open_library.cache_clear()
    with pytest.raises(MissingExtraError, match=r"python -m piston\.runtime\.kernels"):
        kernels.require()


def test_on_another_processor_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(kernels, "level", lambda: "none")
    with pytest.raises(EngineError, match="no AVX-512 VNNI"):
        kernels.require()
