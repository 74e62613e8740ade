"""From a model directory to a bundle that holds engines of two kinds."""

import json
import re
import sys

import pytest

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest, sha256_of
from piston.core.errors import EngineError, MissingExtraError, MisuseError, ParityError, ShortfallError
from piston.engines import build
from piston.engines.tensorrt.compiler_options import CompilerOptions
from piston.runtime import SamplingParams, load

RTX = "tensorrt-rtx:sm89"


@pytest.fixture(scope="module")
def bundle(model_dir, tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    root = tmp_path_factory.mktemp("two")
    build(model_dir, root / "bundle", ["ort-cpu", RTX], max_batch=3, max_length=50, cache_dir=root / "cache")
    return root / "bundle"


def test_a_bundle_holds_engines_of_both_kinds_and_runs_the_one_this_machine_can(bundle):
    manifest = Manifest.read(bundle)
    assert [(spec.target, spec.path, spec.cache.dtype) for spec in manifest.engines] == [
        ("ort-cpu", "ort-cpu/model.onnx", "float32"),
        (RTX, "tensorrt-rtx-sm89/engine.plan", "float16"),
    ]
    manifest.verify(bundle)
    with load(bundle, target="ort-cpu") as model:
        assert model.generate("hello", SamplingParams(max_tokens=3)).token_ids


def test_the_manifest_says_what_the_runtime_must_know(bundle):
    spec = Manifest.read(bundle).engines[1]
    got = spec.actual
    assert spec.requested == {
        "max_batch": 3, "max_length": 50, "dtype": "auto", "require_int8": None, "compiler": {},
    }  # fmt: skip
    assert (got["compiler"], got["compute_capabilities"]) == ("tensorrt_rtx", ["sm89"])
    assert (got["dtype"], got["max_positions"], got["capacity"], got["max_top_k"]) == ("float16", 50, 52, 64)
    assert list(got["profiles"]) == ["prefill", "decode"]
    assert got["profiles"]["prefill"]["input_ids"] == [[1, 1], [1, 50], [1, 50]]
    assert got["profiles"]["decode"]["input_ids"] == [[1, 1], [3, 1], [3, 1]]
    assert got["profiles"]["decode"]["past.0.key"] == [[1, 2, 52, 16], [3, 2, 52, 16], [3, 2, 52, 16]]
    assert got["io"]["past.1.value"] == {"mode": "input", "dtype": "float16", "shape": ["batch", 2, 52, 16]}
    assert got["io"]["next.input_ids"] == {"mode": "output", "dtype": "int64", "shape": ["batch", "k"]}
    assert got["plan_sha256"] == sha256_of(bundle / spec.path)
    assert [parity["dtype"] for parity in got["parities"]] == ["float32", "float16"]
    assert got["linears"]["float"] == 1


def test_the_same_again_comes_from_the_cache(bundle, model_dir, tmp_path, monkeypatch):
    from piston.engines.tensorrt import build as builder

    monkeypatch.setattr(builder, "build_tensorrt", None)  # it would be called
    again = build(model_dir, tmp_path / "bundle", [RTX], max_batch=3, max_length=50, cache_dir=bundle.parent / "cache")
    assert again.engines == Manifest.read(bundle).engines[1:]
    assert (tmp_path / "bundle" / again.engines[0].path).is_file()


def test_the_command_prints_what_came_of_it(bundle, model_dir, tmp_path, capsys):
    arguments = ["build", str(model_dir), "-o", str(tmp_path / "bundle"), "--target", RTX, "--max-batch", "3"]
    assert main([*arguments, "--max-length", "50", "--cache-dir", str(bundle.parent / "cache")]) == 0
    out, err = capsys.readouterr()
    assert f"{RTX}: tensorrt_rtx 1.7.1.116 for sm89; float16, cache float16, batch up to 3, length up to 50" in out
    assert "parity in float16, on ONNX Runtime: logits within" in out
    assert "has been proved and compiled here; run `piston verify` where its GPU is" in err
    assert f"taking {RTX} from the engine cache" in err


def test_bfloat16_is_proved_by_rounding_every_result(model_dir, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    (spec,) = build(model_dir, tmp_path / "bundle", [RTX], max_batch=1, max_length=20, dtype="bf16").engines
    assert (spec.cache.dtype, spec.actual["dtype"]) == ("bfloat16", "bfloat16")
    assert spec.actual["io"]["present.0.key"]["dtype"] == "bfloat16"
    float32, narrow = spec.actual["parities"]
    assert float32["relative"] < 1e-5 < narrow["relative"] < 0.1


def test_a_missing_compiler_is_said_before_any_work(model_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'piston\[rtx\]'"):
        build(model_dir, tmp_path / "bundle", [RTX])
    assert list(tmp_path.iterdir()) == []


def test_an_option_is_never_accepted_and_ignored(model_dir, tmp_path):
    with pytest.raises(MisuseError, match="--workspace is for TensorRT targets, and none was given: ort-cpu"):
        build(model_dir, tmp_path / "bundle", ["ort-cpu"], compiler=CompilerOptions(workspace=2**30))
    for target, reason in (("ort-cpu", "is for TensorRT targets"), (RTX, "its compiler ignores it")):
        with pytest.raises(MisuseError, match=f"--optimization-level .*{reason}"):
            build(model_dir, tmp_path / "bundle", [target], compiler=CompilerOptions(optimization_level=0))


def test_a_share_that_is_not_reached_leaves_nothing(model_dir, tmp_path):
    with pytest.raises(ShortfallError, match=r"0\.00% of the linear multiply-adds run in INT8"):
        build(model_dir, tmp_path / "bundle", [RTX], require_int8=0.9)
    assert list(tmp_path.iterdir()) == []


def test_json_holds_both_engines(bundle, model_dir, tmp_path, capsys):
    arguments = [
        "build",
        str(model_dir),
        "-o",
        str(tmp_path / "bundle"),
        "--target",
        "ort-cpu",
        "--target",
        RTX,
        "--json",
    ]
    sizes = ["--max-batch", "3", "--max-length", "50", "--cache-dir", str(bundle.parent / "cache"), "--quiet"]
    assert main([*arguments, *sizes]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [engine["target"] for engine in report["engines"]] == ["ort-cpu", RTX]


def test_int4_is_refused_for_a_gpu_that_has_not_got_it(toys, tmp_path):
    quantized = toys.model_dir(scheme="w4")
    with pytest.raises(EngineError, match="tensorrt-rtx:sm75 cannot read INT4 weights"):
        build(quantized, tmp_path / "bundle", ["tensorrt-rtx:sm75"])


def test_a_model_beyond_float16_is_built_in_bfloat16_and_that_is_told(wide_model_dir, tmp_path, fake_compiler, capsys):
    arguments = ["build", str(wide_model_dir), "-o", str(tmp_path / "bundle"), "--target", RTX, "--max-length", "20"]
    assert main([*arguments, "--quiet", "--no-cache"]) == 0
    (spec,) = Manifest.read(tmp_path / "bundle").engines
    assert (spec.requested["dtype"], spec.actual["dtype"], spec.actual["cache"], spec.cache.dtype) == (
        "auto", "bfloat16", "bfloat16", "bfloat16",
    )  # fmt: skip
    assert re.search(
        r"At the prefill of 3 tokens .*layers\.0.* reaches [\d.e+]+, beyond float16$", spec.actual["dtype_reason"]
    )
    assert f"note: {RTX} computes in bfloat16: {spec.actual['dtype_reason']}" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "dtype"), [(RTX, "fp16"), ("tensorrt-rtx:sm75,sm89", None)])
def test_where_there_is_no_other_type_a_model_beyond_float16_is_refused_with_the_way_out(
    wide_model_dir, tmp_path, fake_compiler, target, dtype
):
    with pytest.raises(ParityError, match=r"layers\.0.* reaches [\d.e+]+, beyond float16; build with --dtype bf16"):
        build(wide_model_dir, tmp_path / "bundle", [target], max_length=20, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_refused_for_a_gpu_that_has_not_got_it(model_dir, tmp_path):
    with pytest.raises(EngineError, match="tensorrt-rtx:sm75 cannot compute in bfloat16: sm75 has no such type"):
        build(model_dir, tmp_path / "bundle", ["tensorrt-rtx:sm75"], dtype="bf16")


def test_a_model_within_float16_stays_in_float16(model_dir, tmp_path, fake_compiler):
    (spec,) = build(model_dir, tmp_path / "bundle", [RTX], max_length=20).engines
    assert (spec.requested["dtype"], spec.actual["dtype"], "dtype_reason" in spec.actual) == ("auto", "float16", False)


def test_a_product_inside_a_layer_that_goes_beyond_float16_is_found_though_the_layers_result_would_fit(
    tmp_path, fake_compiler
):
    """Infinity times weights of both signs is no number, of which only the product says where it came from."""
    import torch
    from checkpoints import write_checkpoint

    from piston.export import ExportOptions, export_model

    model = write_checkpoint(tmp_path / "checkpoint")
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        for linear, factor in ((mlp.gate_proj, 100), (mlp.up_proj, 1e4), (mlp.down_proj, 1e-5)):
            linear.weight *= factor
    model.save_pretrained(tmp_path / "checkpoint")
    export_model(tmp_path / "checkpoint", tmp_path / "model", ExportOptions(check_parity=False))
    (spec,) = build(tmp_path / "model", tmp_path / "bundle", [RTX], max_length=20).engines
    assert spec.actual["dtype"] == "bfloat16"
    assert re.search(r"layers\.1\.mlp.* reaches [\d.e+]+, beyond float16$", spec.actual["dtype_reason"])
