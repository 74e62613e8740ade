"""Every kind of broken or foreign thing, each with what must be said of it and the command that must be given."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_model import CACHE, edit_manifest, manifest_of, write_bundle

from piston.cli.checks.path import examine_path
from piston.core.bundle.manifest import EngineSpec, record_files

INSTALLED = {"tensorrt-rtx-cu13": "1.7.1.116", "onnxruntime": "1.32.0"}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr("piston.runtime.backends.cuda_driver.has_driver", lambda: False)


def plan(tag=b"vtrt", version=(1, 7, 1, 116), size=96):
    head = bytearray(64)
    head[:4], head[16:24], head[24:28], head[32] = tag, size.to_bytes(8, "little"), bytes(version), 8
    return bytes(head) + bytes(32)


def graph(*inputs, weights_in=None):
    onnx = pytest.importorskip("onnx")
    tensors = []
    if weights_in:
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
        tensor.external_data.add(key="location", value=weights_in)
        tensors.append(tensor)
    infos = [onnx.helper.make_tensor_value_info(name, 7, [1]) for name in inputs]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", infos, [], tensors)).SerializeToString()


def write(directory, **files):
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def safetensors(size=16):
    """A float32 tensor [4], as the format's documentation lays it out; whole with 16 bytes of data."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def gguf(tmp_path, cut=0):
    """Two tensors at an alignment of their own, by the reference writer; the last `cut` bytes of data are missing."""
    writer = pytest.importorskip("gguf").GGUFWriter(tmp_path / "written", "llama")
    writer.add_custom_alignment(64)
    writer.add_tensor("a", np.zeros(3, np.float32))
    q8_0 = np.full((2, 34), 255, np.uint8)
    writer.add_tensor("b", q8_0, raw_dtype=8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = (tmp_path / "written").read_bytes()
    (tmp_path / "written").unlink()
    end = data.rindex(b"\xff") + 1  # padding follows
    return data[: end - cut]


def checkpoint(directory, **weights):
    write(directory, **{"config.json": {}, "tokenizer.json": {}} | weights)


def sharded(directory, *there):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    checkpoint(directory, **{"model.safetensors.index.json": index} | dict.fromkeys(there, safetensors()))


def named(directory, name, content):
    (directory / name).write_bytes(content)
    return directory / name


def bundle(directory, edit=None, **changes):
    write_bundle(directory, **changes)
    if edit:
        edit_manifest(directory, edit)


def with_engine(directory, target):
    write_bundle(
        directory,
        engines=(EngineSpec.of(target=target, path="ort-cpu/model.onnx", cache=CACHE, requested={}, actual={}),),
    )


def beneath(directory, name, content):
    """A file two directories below a manifest that does not record it."""
    write_bundle(directory / "out")
    (directory / "out/engine").mkdir()
    named(directory / "out/engine", name, content)


def recorded(directory, name, content):
    """A file that the manifest above it records."""
    write_bundle(directory)
    write(directory, **{name: content})
    manifest_of(files=record_files(directory)).write(directory)


def no_tokenizer(directory):
    write_bundle(directory)
    (directory / "tokenizer.json").unlink()
    manifest_of(files=record_files(directory)).write(directory)


def broken_tokenizer(directory):
    write_bundle(directory)
    (directory / "tokenizer.json").write_text("{}")
    manifest_of(files=record_files(directory)).write(directory)


def damaged(name, change):
    def make(directory):
        write_bundle(directory)
        change(directory / name)

    return make


def shortened(path):
    path.write_bytes(path.read_bytes()[:-3])


def changed(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


# what it is: (how it is made, in tmp_path; which part is given, what is said, what fixes it)
GGUF = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
BROKEN = {
    "nothing": (lambda d: None, "absent", "it does not exist", "check the path"),
    "an empty directory": (lambda d: None, "", "nothing here is a model", "piston export"),
    "no manifest": (
        damaged("manifest.json", Path.unlink),
        "",
        "manifest.json is missing",
        "copy the complete directory",
    ),
    "manifest of nonsense": (lambda d: write(d, **{"manifest.json": b"{"}), "", "cannot be read", "piston build"),
    "too new": (lambda d: bundle(d, lambda m: m.update(schema=99)), "", "schema 99", "pip install --upgrade piston"),
    "an older shape": (lambda d: bundle(d, lambda m: m.pop("graphs")), "", "graphs is missing", "piston build"),
    "truncated weights": (damaged("ort-cpu/model.onnx", shortened), "", "it was truncated", "--target ort-cpu"),
    "another file": (damaged("ort-cpu/model.onnx", changed), "", "SHA-256 differs", "--target ort-cpu"),
    "a missing file": (damaged("ort-cpu/model.onnx", Path.unlink), "", "it is missing", "copy it whole"),
    "a file outside": (
        lambda d: bundle(d, lambda m: m["files"].update({"../x": {"sha256": "", "size": 1}})),
        "",
        "outside the directory",
        "copy it whole",
    ),
    "no tokenizer": (no_tokenizer, "", "no tokenizer", "tokenizer.json"),
    "a broken tokenizer": (broken_tokenizer, "", "tokenizer", "piston build"),
    "no engines": (lambda d: bundle(d, engines=()), "", "without engines", "piston build"),
    "an unrecorded engine": (
        lambda d: bundle(d, lambda m: m["engines"][0]["files"].update(decoder="other")),
        "",
        "not among the recorded files",
        "piston build",
    ),
    "an engine for another target": (
        lambda d: with_engine(d, "tensorrt-rtx:sm89"),
        "",
        "no CUDA driver",
        "--target ort-cpu --overwrite",
    ),
    "an engine for a target of the future": (
        lambda d: with_engine(d, "npu"),
        "",
        "no backend for npu",
        "--target ort-cpu",
    ),
    "genai": (lambda d: write(d, **{"genai_config.json": {}}), "", "onnxruntime-genai", "piston export CHECKPOINT"),
    "TensorRT-LLM": (lambda d: write(d, **{"rank0.engine": b"x"}), "", "TensorRT-LLM", "piston export CHECKPOINT"),
    "TensorRT-LLM's config": (
        lambda d: write(d, **{"config.json": {"pretrained_config": {}, "build_config": {}}}),
        "",
        "TensorRT-LLM",
        "piston export CHECKPOINT",
    ),
    "OpenVINO": (lambda d: write(d, **{"openvino_model.xml": b"<"}), "", "OpenVINO", "piston export CHECKPOINT"),
    "a config alone": (lambda d: write(d, **{"config.json": {}}), "", "without weights", "download"),
    "a config of nonsense": (lambda d: write(d, **{"config.json": b"{"}), "", "cannot be read", "download it again"),
    "a checkpoint without tokenizer": (
        lambda d: write(d, **{"config.json": {}, "model.safetensors": b""}),
        "",
        "without a tokenizer",
        "tokenizer.json",
    ),
    "weights alone": (
        lambda d: write(d, **{"model.safetensors": b"x" * 9}),
        "model.safetensors",
        "without their config",
        "piston export",
    ),
    "a cut safetensors file": (
        lambda d: checkpoint(d, **{"model.safetensors": safetensors(15)}),
        "",
        "truncated",
        "download it again",
    ),
    "an empty safetensors file": (
        lambda d: checkpoint(d, **{"model.safetensors": b""}),
        "",
        "its header cannot be read",
        "download it again",
    ),
    "a missing shard": (lambda d: sharded(d, "model-1.safetensors"), "", "holds part of the weights", "download"),
    "an index of nonsense": (
        lambda d: checkpoint(d, **{"model.safetensors": safetensors(), "model.safetensors.index.json": b"{"}),
        "",
        "it is missing",
        "download it again",
    ),
    "a cut archive of PyTorch": (
        lambda d: checkpoint(d, **{"pytorch_model.bin": b"PK\3\4" + bytes(50)}),
        "",
        "truncated",
        "download it again",
    ),
    "a cut GGUF file": (lambda d: named(d, "x.gguf", gguf(d, 1)), "x.gguf", "truncated", "download it again"),
    "a directory with a cut one": (lambda d: named(d, "x.gguf", gguf(d, 1)), "", "truncated", "download it again"),
    "weights of no bytes": (lambda d: checkpoint(d, **{"pytorch_model.bin": b""}), "", "empty", "download it again"),
    "a part of a split GGUF file": (
        lambda d: named(d, "x-00002-of-00003.gguf", gguf(d)),
        "x-00002-of-00003.gguf",
        "holds part of the weights",
        "download it again",
    ),
    "a plan alone": (
        lambda d: named(d, "p", plan()),
        "p",
        "without its bundle",
        "piston build MODEL_DIR -o BUNDLE --target tensorrt-rtx",
    ),
    "a plan below a manifest of other files": (
        lambda d: beneath(d, "p", plan()),
        "out/engine/p",
        "without its bundle",
        "piston build MODEL_DIR -o BUNDLE --target tensorrt-rtx",
    ),
    "a graph below a manifest of other files": (
        lambda d: beneath(d, "g.onnx", graph("input_ids", "lengths")),
        "out/engine/g.onnx",
        "manifest.json is missing",
        "copy the complete directory",
    ),
    "a plan of another version": (
        lambda d: named(d, "p", plan(version=(1, 6, 0, 9))),
        "p",
        "only plans of its own version",
        "pip install 'tensorrt-rtx-cu13==1.6.0.9'",
    ),
    "a truncated plan": (lambda d: named(d, "p", plan(size=99)), "p", "truncated", "copy it again"),
    "a plan of the other compiler": (
        lambda d: named(d, "p", plan(tag=b"ftrt", version=(11, 4, 0, 2))),
        "p",
        "tensorrt 11.4.0.2",
        "pip install 'piston[trt]'",
    ),
    "the beginning of a plan": (
        lambda d: named(d, "p", b"vtrt123"),
        "p",
        "not a TensorRT or TensorRT-RTX plan",
        "piston build",
    ),
    "a foreign graph": (lambda d: named(d, "x.onnx", graph("image")), "x.onnx", "did not export", "piston export"),
    "a graph without its weights": (
        lambda d: named(d, "x.onnx", graph("image", weights_in="x.data")),
        "x.onnx",
        "it is missing",
        "copy both",
    ),
    "a graph whose weights lie outside": (
        lambda d: named(d, "x.onnx", graph("image", weights_in="../x.data")),
        "x.onnx",
        "it is missing",
        "copy both",
    ),
    "a graph of ours, alone": (
        lambda d: named(d, "m.onnx", graph("input_ids", "kv_lengths")),
        "m.onnx",
        "without its directory",
        "copy the complete directory",
    ),
    "a GGUF file that ends in its header": (
        lambda d: named(d, "x.gguf", GGUF[:-1]),
        "x.gguf",
        "ends within its header",
        "download",
    ),
    "something else": (lambda d: named(d, "x", b"hello"), "x", "not an ONNX file", "copy it again"),
}
WHOLE = {
    "a bundle": (bundle, "", "a complete bundle of toy", ""),
    "its manifest": (bundle, "manifest.json", "a complete bundle of toy", ""),
    "a model directory": (lambda d: bundle(d, kind="model", engines=()), "", "cannot be run before", "piston build"),
    "a checkpoint": (
        lambda d: checkpoint(d, **{"model.safetensors": safetensors()}),
        "",
        "Hugging Face checkpoint",
        "piston export",
    ),
    "a checkpoint in shards": (
        lambda d: sharded(d, "model-1.safetensors", "model-2.safetensors"),
        "",
        "Hugging Face checkpoint",
        "piston export",
    ),
    "a plan in its bundle": (
        lambda d: recorded(d, "rtx__e.plan", plan()),
        "rtx/e.plan",
        "in its bundle",
        "piston doctor",
    ),
    "a graph in its directory": (
        lambda d: recorded(d, "cpu__encoder__g.onnx", graph("input_ids", "lengths")),
        "cpu/encoder/g.onnx",
        "in its directory",
        "piston doctor",
    ),
    "a GGUF file": (lambda d: named(d, "x.gguf", gguf(d)), "x.gguf", "GGUF checkpoint", "piston export"),
    "a directory with one": (lambda d: named(d, "x.gguf", gguf(d)), "", "GGUF checkpoint", "x.gguf -o DIR"),
}


def findings_of(tmp_path, make, part):
    make(tmp_path)
    return examine_path(tmp_path / part if part else tmp_path, INSTALLED.get)


@pytest.mark.parametrize(("make", "part", "said", "fixed"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_said_with_what_fixes_it(tmp_path, make, part, said, fixed):
    findings = findings_of(tmp_path, make, part)
    bad = [finding for finding in findings if finding.level != "ok"]
    assert any(finding.level == "wrong" for finding in bad)
    assert all(finding.fix for finding in bad)
    assert any(said in finding.says for finding in bad), findings
    assert any(fixed in finding.fix for finding in bad), findings


@pytest.mark.parametrize(("make", "part", "said", "next_step"), WHOLE.values(), ids=WHOLE)
def test_what_is_whole_is_said_with_the_next_step(tmp_path, make, part, said, next_step):
    findings = findings_of(tmp_path, make, part)
    assert {finding.level for finding in findings} == {"ok"}
    assert any(said in finding.says and next_step in finding.fix for finding in findings), findings


def test_every_damaged_file_is_named_not_only_the_first(tmp_path):
    write_bundle(tmp_path)
    shortened(tmp_path / "tokenizer.json")
    changed(tmp_path / "chat_template.jinja")
    assert len([finding for finding in examine_path(tmp_path) if finding.level == "wrong"]) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"vtrt", b"ftrt", b"GGUF", b"\x08\x08"]), st.binary(max_size=90))
def test_any_bytes_get_a_finding(tmp_path, tag, rest):
    assert examine_path(named(tmp_path, "any", tag + rest), INSTALLED.get)


@pytest.mark.parametrize("goal", ["", "x-00001-of-00002.gguf"])
def test_a_complete_set_of_parts_is_not_called_ready(tmp_path, goal):
    for number in (1, 2):
        keys = {"split.no": number - 1, "split.count": 2}
        write_raw(tmp_path / f"x-0000{number}-of-00002.gguf", "llama", keys, {f"t{number}": np.zeros(4)})
    (found,) = examine_path(tmp_path / goal)
    assert (found.level, found.fix) == ("wrong", "llama-gguf-split --merge x-00001-of-00002.gguf MERGED.gguf")
