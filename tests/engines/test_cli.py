import json

import pytest

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.engines.lowering import attention_layer


def test_build_prints_what_came_of_it_and_progress_apart(model_dir, tmp_path, capsys):
    assert main(["build", str(model_dir), "-o", str(tmp_path / "bundle"), "--max-length", "50"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(f"{tmp_path / 'bundle'}: LlamaForCausalLM")
    assert "attention fused in 2 of 2" in out
    assert "length up to 50" in out
    assert "parity: logits within" in out
    assert "checking it against the canonical graph" in err


def test_json_is_one_object(model_dir, tmp_path, capsys):
    arguments = ["build", str(model_dir), "-o", str(tmp_path / "bundle"), "--target", "ort-cpu", "--json", "--quiet"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["output"] == str(tmp_path / "bundle")
    assert report["bytes"] > 100_000
    assert report["engines"][0]["requested"].items() >= {"max_batch": 8, "max_length": 96}.items()
    assert report["engines"][0]["actual"]["attention_fused"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--target", "tensorrt-rtx:h100"], 2, "names the GPU 'h100'"),
        (["--dtype", "bf16"], 2, "--dtype is for ort-cpu:avx512 and TensorRT targets, and none was given: ort-cpu"),
        (["--target", "tensorrt-rtx", "--refit"], 2, "--refit is not for tensorrt-rtx: its compiler needs a GPU"),
        (["--target", "tensorrt-rtx", "--workspace", "2"], 2, "Cannot read --workspace '2'"),
        (["--target", "tensorrt-rtx", "--lm-head", "int8"], 2, "--lm-head int8 is for ort-cpu"),
        (["--max-batch", "0"], 2, "--max-batch 0"),
        (["--max-length", "1000"], 2, "--max-length 1000 must be from 2 to 96"),
    ],
)
def test_misuse_is_one_line_and_status_two(model_dir, tmp_path, capsys, arguments, status, message):
    assert main(["build", str(model_dir), "-o", str(tmp_path / "bundle"), *arguments]) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_directory_that_is_no_model_fails_with_status_one(tmp_path, capsys):
    assert main(["build", str(tmp_path), "-o", str(tmp_path / "bundle")]) == 1
    assert "No manifest.json" in capsys.readouterr().err


def test_attention_that_stays_canonical_is_built_and_warned_of(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attention_layer, "HEAD_DIM_UNIT", 5)
    assert main(["build", str(model_dir), "-o", str(tmp_path / "bundle"), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "attention fused in 0 of 2" in out
    (warning,) = err.splitlines()
    assert warning == (
        "warning: model.layers.0.self_attn/Attention and 1 more like it stay canonical, which is slower: "
        "head_dim 16 is no multiple of 5"
    )


def test_attention_with_a_bias_by_distance_is_said_to_have_one(text_bundle):
    (spec,) = Manifest.read(text_bundle).engines
    assert set(spec.actual["not_lowered"].values()) == {
        "it adds a bias to its scores, which GroupQueryAttention does not"
    }
