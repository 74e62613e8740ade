import json
import shutil

import pytest

from piston.core.bundle.manifest import Manifest
from piston.core.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    MisuseError,
    OutputExistsError,
    ParityError,
)
from piston.engines import build
from piston.engines.lowering import skip_norm
from piston.runtime import SamplingParams, load


@pytest.fixture(scope="module")
def bundle(model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "llama"
    build(model_dir, out, max_batch=3, max_length=50)
    return out


def test_the_runtime_opens_a_bundle_and_generates(bundle):
    with load(bundle) as model:
        completion = model.generate("hello", SamplingParams(max_tokens=5))
    assert 1 <= len(completion.token_ids) <= 5


def test_the_manifest_says_what_was_asked_and_what_came_of_it(bundle):
    manifest = Manifest.read(bundle)
    (engine,) = manifest.engines
    assert (manifest.kind, engine.target, engine.path) == ("bundle", "ort-cpu", "ort-cpu/model.onnx")
    assert engine.requested == {"max_batch": 3, "max_length": 50, "lm_head": "float32", "require_int8": None}
    assert (engine.actual["attention_fused"], engine.actual["attention_layers"]) == (2, 2)
    assert engine.actual["max_positions"] == 50
    assert engine.actual["parity"]["max_abs"] <= 2e-5
    assert engine.actual["not_lowered"] == {}


def test_the_manifest_records_what_was_read(bundle, model_dir):
    manifest, model = Manifest.read(bundle), Manifest.read(model_dir)
    source = manifest.made_by["source"]
    assert source["made_by"] == dict(model.made_by)
    assert {name: record.sha256 for name, record in model.files.items()}.items() <= source["sha256"].items()
    assert "manifest.json" in source["sha256"]


def test_every_file_of_a_bundle_is_recorded_and_nothing_else_is_there(bundle):
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert present - {"manifest.json"} == set(manifest.files)
    assert present == {
        "manifest.json",
        "tokenizer.json",
        "chat_template.jinja",
        "ort-cpu/model.onnx",
        "ort-cpu/model.onnx.data",
        "verify.json",
    }


def test_the_same_model_directory_gives_the_same_bundle_byte_for_byte(bundle, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "elsewhere")
    build(tmp_path / "elsewhere", tmp_path / "again", max_batch=3, max_length=50)
    for path in bundle.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(bundle)).read_bytes() == path.read_bytes(), path


def test_a_bfloat16_model_is_built_in_float32_and_proved_against_its_own_values(bfloat16_model_dir, tmp_path):
    manifest = build(bfloat16_model_dir, tmp_path / "bundle")
    assert (manifest.model.dtype, manifest.engines[0].cache.dtype) == ("bfloat16", "float32")
    assert manifest.engines[0].actual["parity"]["max_abs"] <= 2e-5
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [
        "chat_template.jinja",
        "manifest.json",
        "ort-cpu",
        "tokenizer.json",
        "verify.json",
    ]


def test_length_defaults_to_the_models_positions(model_dir, tmp_path):
    manifest = build(model_dir, tmp_path / "bundle")
    assert manifest.engines[0].requested["max_length"] == 96


def test_a_lowering_that_changes_the_answers_leaves_nothing(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(skip_norm, "float_attribute", lambda *_: 0.5)  # another epsilon
    with pytest.raises(ParityError, match="differs from the canonical one"):
        build(model_dir, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["openvino"], r"There is no target 'openvino'; available: ort-cpu"),
        (["tensorrt-rtx:sm90"], "TensorRT-RTX does not build for sm90: it knows sm75, sm80.*use --target tensorrt"),
        (["tensorrt:sm80,sm90"], "names 2 GPUs; TensorRT builds for the one that is present"),
        (["tensorrt-rtx:"], "names the GPU ''; write its compute capability, such as sm89"),
        (["tensorrt-rtx:sm89,sm89"], "names a GPU twice"),
        (["ort-cpu", "ort-cpu"], "named twice"),
        ([], "No target was given"),
    ],
)
def test_a_target_that_cannot_be_built_is_refused_by_name(model_dir, tmp_path, targets, message):
    with pytest.raises(MisuseError, match=message):
        build(model_dir, tmp_path / "bundle", targets)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_batch": 0}, "--max-batch 0 must be at least 1"),
        ({"max_length": 1}, "--max-length 1 must be from 2 to 96"),
        ({"max_length": 97}, "--max-length 97 must be from 2 to 96"),
    ],
)
def test_a_size_the_model_does_not_have_is_refused(model_dir, tmp_path, sizes, message):
    with pytest.raises(MisuseError, match=message):
        build(model_dir, tmp_path / "bundle", **sizes)


def test_an_output_that_exists_is_kept_unless_told_otherwise(model_dir, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/mine").write_text("kept")
    with pytest.raises(OutputExistsError):
        build(model_dir, tmp_path / "bundle")
    assert (tmp_path / "bundle/mine").read_text() == "kept"
    with pytest.raises(OutputExistsError, match="holds mine, which Piston did not write"):
        build(model_dir, tmp_path / "bundle", overwrite=True)
    assert (tmp_path / "bundle/mine").read_text() == "kept"
    (tmp_path / "bundle/mine").unlink()
    build(model_dir, tmp_path / "bundle", overwrite=True)
    (tmp_path / "bundle/tokenizer.json").write_text("damaged")
    build(model_dir, tmp_path / "bundle", overwrite=True)
    Manifest.read(tmp_path / "bundle").verify(tmp_path / "bundle")


def linked(model_dir, place, how):
    """The model directory as package managers and the hub's cache make one."""
    if how == "a link to the directory":
        place.symlink_to(model_dir)
        return place
    blobs, files = place / "blobs", place / "snapshots/0"
    shutil.copytree(model_dir, blobs)
    files.mkdir(parents=True)
    for path in blobs.iterdir():
        if how == "hard links":
            (files / path.name).hardlink_to(path)
        else:
            (files / path.name).symlink_to(f"../../blobs/{path.name}")
    return files


@pytest.mark.parametrize("how", ["a link to the directory", "hard links", "links to files"])
def test_a_model_directory_of_links_is_built_as_any_other(model_dir, tmp_path, how):
    source = linked(model_dir, tmp_path / "linked", how)
    before = sorted(tmp_path.rglob("*"))
    plain, manifest = build(model_dir, tmp_path / "plain"), build(source, tmp_path / "bundle")
    assert {name: record.sha256 for name, record in manifest.files.items() if name.startswith("ort-cpu")} == {
        name: record.sha256 for name, record in plain.files.items() if name.startswith("ort-cpu")
    }
    made = {
        path
        for path in tmp_path.rglob("*")
        if path.is_relative_to(tmp_path / "bundle") or path.is_relative_to(tmp_path / "plain")
    }
    assert sorted(set(tmp_path.rglob("*")) - made) == before


def test_a_damaged_model_directory_of_links_is_refused_before_it_is_copied(model_dir, tmp_path):
    source = linked(model_dir, tmp_path / "linked", "hard links")
    (source / "model.onnx.data").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx\.data"):
        build(source, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["linked"]


@pytest.mark.parametrize("goal", [".", "..", "../.."])
def test_the_output_may_not_replace_what_is_read(model_dir, goal):
    with pytest.raises(MisuseError, match="would replace"):
        build(model_dir, model_dir / goal, overwrite=True)
    assert (model_dir / "model.onnx").is_file()


def test_a_bundle_is_no_model_directory(bundle, tmp_path):
    with pytest.raises(BundleError, match="is a bundle already"):
        build(bundle, tmp_path / "bundle")


def test_a_missing_model_directory_is_named(tmp_path):
    with pytest.raises(BundleNotFoundError, match="nowhere"):
        build(tmp_path / "nowhere", tmp_path / "bundle")


def test_a_damaged_model_directory_is_refused_before_work(model_dir, tmp_path):
    damaged = tmp_path / "model"
    shutil.copytree(model_dir, damaged)
    data = bytearray((damaged / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (damaged / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleCorruptError, match=r"model\.onnx\.data"):
        build(damaged, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_manifest_holds_no_date_and_no_path(bundle, model_dir):
    text = (bundle / "manifest.json").read_text()
    assert str(model_dir.parent) not in text
    assert not any(key in json.loads(text)["made_by"] for key in ("date", "time", "created"))
