"""Quantized model directories, end to end: lowered, proved against their simulation in float, and counted."""

import json
import shutil

import onnx_ir as ir
import pytest
from quantized import quantize

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError, ShortfallError
from piston.engines import build
from piston.engines.equivalence.activation_injection import add_activation_outputs
from piston.engines.equivalence.answers import check_parity
from piston.engines.ort.cpu_graph import build_ort
from piston.runtime import SamplingParams, load

SCHEMES = ("w8a8", "w8", "w8 block 32", "w4", "w4 block 128")
ARITHMETIC = {"w8a8": "int8", "w8": "weights8", "w4": "weights4"}
ARCHITECTURES = {  # of two layers: qkv packed
    "mistral": ({}, 2),
    "gemma3_text": ({}, 0),
    "gpt2": ({}, 2),
    "gpt_neox": ({"hidden_size": 128, "head_dim": 32}, 2),
    "starcoder2": ({}, 2),
}


@pytest.fixture(scope="module")
def model_dirs(toys):
    """One model directory for each scheme."""
    return {scheme: toys.model_dir(scheme=scheme) for scheme in SCHEMES}


@pytest.fixture(scope="module")
def bundle(toys):
    return toys.bundle(scheme="w8a8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_linear_runs_in_the_arithmetic_of_its_scheme(model_dirs, scheme, tmp_path):
    manifest = build(model_dirs[scheme], tmp_path / "bundle", lm_head="float32")
    got = manifest.engines[0].actual
    arithmetic = ARITHMETIC[scheme.partition(" ")[0]]
    assert got["linears"] == dict.fromkeys(("int8", "weights8", "weights4", "float"), 0.0) | {arithmetic: 1.0}
    assert got["lm_head"] == "float"
    assert (got["not_fused"], got["linears_in_float"], got["not_lowered"]) == ({}, [], {})
    assert "DequantizeLinear" not in got["operators"]
    assert got["parity"]["max_abs"] <= 2e-5
    assert got["parity"]["activations"] == (8 if scheme == "w8a8" else 0)
    assert got["kernels"]["products"] == 10  # qkv is one: five a layer
    assert got["kernels"]["max_relative"] <= 1e-2


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8 remainder", "w4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_are_lowered_as_well(name, scheme, toy, tmp_path):
    overrides, packed = ARCHITECTURES[name]
    canonical = toy(name, **overrides)
    path = quantize(canonical.path, tmp_path / "model", canonical.cache, scheme)
    built = build_ort(path, tmp_path / "engine", 64)
    assert built.lowered.packed_qkv == packed
    assert built.work.share(ARITHMETIC[scheme.partition(" ")[0]]) == 1
    assert built.work.unfused == {}
    exposed = exposed_copy(path, tmp_path)
    assert check_parity(exposed, built.path, canonical.cache, max_length=64).max_abs <= 2e-5


def test_a_quantized_bundle_generates_with_a_head_in_int8(bundle):
    engine = Manifest.read(bundle).engines[0]
    assert (engine.requested["lm_head"], engine.actual["lm_head"]) == ("int8", "weights8")
    assert engine.actual["linears"]["int8"] == 1
    with load(bundle) as model:
        assert 1 <= len(model.generate("hello", SamplingParams(max_tokens=5)).token_ids) <= 5


def test_a_bundle_holds_nothing_of_the_proof(bundle):
    assert sorted(path.name for path in (bundle / "ort-cpu").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_head_of_a_float_model_can_be_int8(model_dir, tmp_path):
    got = build(model_dir, tmp_path / "bundle", lm_head="int8").engines[0].actual
    assert (got["lm_head"], got["linears"]["float"], got["linears_in_float"]) == ("weights8", 1.0, [])
    assert got["parity"]["max_abs"] <= 2e-5


def test_a_bfloat16_model_is_quantized_and_built(bfloat16_model_dir, tmp_path):
    build(bfloat16_model_dir, tmp_path / "bundle", lm_head="int8")
    assert Manifest.read(tmp_path / "bundle").engines[0].actual["lm_head"] == "weights8"


def test_two_builds_are_the_same_bytes(model_dirs, bundle, tmp_path):
    build(model_dirs["w8a8"], tmp_path / "again")
    for path in bundle.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(bundle)).read_bytes() == path.read_bytes(), path


def test_linears_with_weights_alone_in_int8_stand_beside_integer_products(toys, tmp_path):
    source = toys.model_dir(scheme="w8a8 mixed")
    got = build(source, tmp_path / "bundle", lm_head="float32").engines[0].actual
    alone = 112 * 64 + 64 * 32  # a down_proj and a v_proj
    share = alone / (2 * (64 * 128 + 64 * 64 + 3 * 112 * 64))
    expected = {"int8": 1 - share, "weights8": share, "weights4": 0.0, "float": 0.0}
    assert got["linears"] == pytest.approx(expected)
    assert (got["not_fused"], got["linears_in_float"], got["not_lowered"]) == ({}, [], {})
    assert got["operators"]["MatMulNBits"] == 2
    assert got["parity"]["max_abs"] <= 2e-5
    assert got["parity"]["activations"] == 7  # v_proj shares its value with query and key


def test_layers_left_in_float_are_named_and_counted(toys, tmp_path):
    source = toys.model_dir(scheme="w8a8", keep=("layers.1.mlp.down_proj",))
    got = build(source, tmp_path / "bundle").engines[0].actual
    assert got["linears_in_float"] == ["model.layers.1.mlp.down_proj"]
    down = 112 * 64
    assert got["linears"]["float"] == pytest.approx(down / (2 * (64 * 128 + 64 * 64 + 3 * down)))
    assert got["linears"]["int8"] == 1 - got["linears"]["float"]


@pytest.mark.parametrize(("required", "is_met"), [("int8>=90%", False), ("int8>=0.85", True)])
def test_a_share_that_is_missed_fails_and_leaves_nothing(toys, tmp_path, capsys, required, is_met):
    source = toys.model_dir(scheme="w8a8", keep=("layers.1.mlp.down_proj",))
    arguments = ["build", str(source), "-o", str(tmp_path / "bundle"), "--quiet", "--require", required]
    assert main(arguments) == (0 if is_met else 1)
    out, err = capsys.readouterr()
    assert (tmp_path / "bundle").exists() == is_met
    if is_met:
        assert "linears: 89.4% in INT8, 10.6% in float; lm_head with 8-bit weights" in out
        return
    assert list(tmp_path.iterdir()) == []
    assert err == (
        "error: 89.39% of the linear multiply-adds run in INT8, 90.00% were required; in float are "
        "model.layers.1.mlp.down_proj. Nothing was written.\n"
    )


def test_weights_alone_are_no_int8(model_dirs, tmp_path):
    with pytest.raises(ShortfallError, match=r"0.00% .* 100.00% have weights alone in INT8 or INT4"):
        build(model_dirs["w8"], tmp_path / "bundle", require_int8=0.01)


@pytest.mark.parametrize("share", ["95", "0%", "-1", "nan", "lots", "", "101%"])
def test_a_share_that_makes_no_sense_is_misuse(model_dirs, tmp_path, capsys, share):
    arguments = ["build", str(model_dirs["w8a8"]), "-o", str(tmp_path / "bundle"), f"--require-int8={share}"]
    assert main(arguments) == 2
    assert f"int8>={share}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("options", [{"require_int8": 95}, {"require_int8": 0}, {"lm_head": "int4"}])
def test_options_that_make_no_sense_are_misuse(model_dirs, tmp_path, options):
    with pytest.raises(MisuseError, match=r"no share above 0|lm_head is 'int4'; it must be one of"):
        build(model_dirs["w8a8"], tmp_path / "bundle", **options)


def test_json_has_the_shares(model_dirs, tmp_path, capsys):
    assert main(["build", str(model_dirs["w4"]), "-o", str(tmp_path / "bundle"), "--json", "--quiet"]) == 0
    got = json.loads(capsys.readouterr().out)["engines"][0]["actual"]
    assert (got["linears"]["weights4"], got["lm_head"]) == (1.0, "weights8")


def test_a_pair_that_does_not_fuse_is_named_with_the_reason(model_dirs, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(model_dirs["w8a8"], source)
    model = ir.load(source / "model.onnx")
    down = next(node for node in model.graph if node.name == "model.layers.0.mlp.down_proj/MatMul")
    negated = ir.node("Neg", [down.inputs[0]], name="negated")
    model.graph.insert_before(down, negated)
    down.replace_input_with(0, negated.outputs[0])
    ir.save(model, source / "model.onnx")
    built = build_ort(source / "model.onnx", tmp_path / "engine", 64)
    ((name, reason),) = built.work.unfused.items()
    assert name.endswith(".dequantized")
    assert reason == "negated is no linear layer"
    assert built.work.in_float == []
    assert 0 < built.work.share("weights8") < 0.2


def exposed_copy(path, tmp_path):
    graph = ir.load(path)
    add_activation_outputs(graph)
    ir.save(graph, tmp_path / "exposed.onnx", external_data="exposed.onnx.data")
    return tmp_path / "exposed.onnx"


@pytest.mark.parametrize("head_dim", [6, 80, 100])
def test_heads_of_any_width_are_built_and_proved(model_dir_with_heads, head_dim, tmp_path):
    got = build(model_dir_with_heads(head_dim), tmp_path / "bundle").engines[0].actual
    assert got["linears"]["int8"] == 1
    assert got["parity"]["activations"] == 8  # four a layer: all that are rounded, under their names
    assert "DequantizeLinear" not in got["operators"]
