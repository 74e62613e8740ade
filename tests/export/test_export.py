"""export_model from checkpoint to model directory: what is written, in which type, and again the same bytes."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from canonical import CanonicalSession
from checkpoints import TEMPLATE, VOCAB_SIZE, write_checkpoint
from tokenizers import Tokenizer

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import CheckpointError, MisuseError, OutputExistsError
from piston.export import ExportOptions, export_model

STANDARD_OPERATORS_ONLY = {""}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("top") / "checkpoint"
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def exported(checkpoint, one_trace, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    with one_trace():
        manifest = export_model(checkpoint, out)
    return out, manifest


@pytest.fixture(scope="module")
def exported_as(checkpoint, one_trace, tmp_path_factory):
    """exported_as(dtype) -> the same in another type: directory and manifest."""

    @functools.cache
    def export(dtype):
        out = tmp_path_factory.mktemp(dtype) / "model"
        with one_trace():  # it is rounded when it has been compared
            return out, export_model(checkpoint, out, ExportOptions(dtype=dtype))

    return export


def test_the_graph_has_the_signature_and_standard_operators_only(exported):
    out, manifest = exported
    model = onnx.load(out / "model.onnx", load_external_data=False)
    assert [value.name for value in model.graph.input] == manifest.graphs["decoder"].input_names
    assert [value.name for value in model.graph.output] == manifest.graphs["decoder"].output_names
    assert {node.domain for node in model.graph.node} == STANDARD_OPERATORS_ONLY
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 24)}
    onnx.checker.check_model(out / "model.onnx", full_check=False)


def test_every_weight_is_external_and_named_as_in_the_checkpoint(exported):
    out, _ = exported
    model = onnx.load(out / "model.onnx", load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 1000}
    assert "model.layers.1.mlp.down_proj.weight" in weights
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights.values())


def test_no_path_of_the_exporting_machine_is_written(exported, checkpoint):
    out, _ = exported
    for path in out.iterdir():
        assert str(checkpoint).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_every_layer_has_a_named_output(exported):
    out, _ = exported
    model = onnx.load(out / "model.onnx", load_external_data=False)
    produced = {name for node in model.graph.node for name in node.output}
    assert {"layers.0.output", "layers.1.output"} <= produced


def test_the_manifest_describes_the_model_and_its_files(exported):
    out, manifest = exported
    assert Manifest.read(out) == manifest
    manifest.verify(out)
    assert manifest.model.architecture == "LlamaForCausalLM"
    assert (manifest.model.num_layers, manifest.model.vocab_size, manifest.model.max_positions) == (2, VOCAB_SIZE, 96)
    assert {state.shape for state in manifest.cache.states} == {("batch", 2, "capacity", 16)}
    assert manifest.tokenizer.eos_token_ids == (2,)
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}
    assert 0 < manifest.made_by["parity"]["max_abs"] < 1e-3
    assert "model.safetensors" in manifest.made_by["source"]["sha256"]


def test_tokenizer_and_template_are_the_checkpoints(exported, checkpoint):
    from transformers import AutoTokenizer

    out, _ = exported
    text = "the quick 你好 👩‍👩‍👧"
    expected = AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"]
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids == expected
    assert (out / "chat_template.jinja").read_text() == TEMPLATE


def test_the_same_checkpoint_in_another_directory_gives_the_same_bytes(exported, checkpoint, tmp_path):
    out, _ = exported
    again = tmp_path / "deeper/elsewhere/again"
    export_model(shutil.copytree(checkpoint, tmp_path / "second/checkpoint"), again)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in again.iterdir())
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("dtype", "onnx_type"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)]
)
def test_a_narrow_type_is_everywhere_but_the_logits(exported_as, dtype, onnx_type):
    out, manifest = exported_as(dtype)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types["past.0.key"] == types["present.1.value"] == onnx_type
    assert types["logits"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in model.graph.initializer}
    assert manifest.cache.dtype == manifest.model.dtype == {"fp16": "float16", "bf16": "bfloat16"}[dtype]
    onnx.checker.check_model(out / "model.onnx")


def test_float16_logits_stay_near_float32(exported_as, exported):
    out, manifest = exported
    prompt = [5, 6, 7, 8, 9]
    feed = ([prompt], [range(5)], [0], [5], [range(5)])
    expected = CanonicalSession(out / "model.onnx", manifest.cache, 1, 8).step(*feed)
    narrow = CanonicalSession(exported_as("fp16")[0] / "model.onnx", manifest.cache, 1, 8)
    import onnxruntime

    cache = {f"past.{i}.{part}": np.zeros((1, 2, 8, 16), np.float16) for i in range(2) for part in ("key", "value")}
    names = ("input_ids", "position_ids", "write_indices", "kv_lengths", "logits_positions")
    values = {name: np.array(value, np.int64) for name, value in zip(names, feed, strict=True)}
    assert isinstance(narrow.session, onnxruntime.InferenceSession)
    actual = narrow.session.run(["logits"], values | cache)[0]
    assert actual.dtype == np.float32
    # half precision keeps 11 bits: a thousandth of the largest logit, over a dozen roundings
    assert np.abs(actual - expected).max() < 1e-2 * np.abs(expected).max()


def test_auto_keeps_the_checkpoints_type(tmp_path):
    write_checkpoint(tmp_path / "checkpoint", dtype=torch.bfloat16)
    assert export_model(tmp_path / "checkpoint", tmp_path / "out").model.dtype == "bfloat16"


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path):
    model = write_checkpoint(tmp_path / "checkpoint")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight.*float16"):
        export_model(tmp_path / "checkpoint", tmp_path / "out", ExportOptions(dtype="fp16"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("type_name", "value"), [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_a_small_tensor_beyond_the_type_is_refused_before_the_graph_is_saved(type_name, value):
    import onnx_ir as ir

    from piston.export.passes.cast_precision import CastPrecisionPass

    norm = ir.Value(name="norm.weight", const_value=ir.tensor(np.array([1, value], np.float32), name="norm.weight"))
    graph = ir.Graph([], [], nodes=[], initializers=[norm], opset_imports={"": 24})
    with pytest.raises(CheckpointError, match=rf"norm\.weight reaches .* beyond {type_name}; use --dtype"):
        CastPrecisionPass(type_name)(ir.Model(graph, ir_version=11))


def test_a_context_without_room_for_an_answer_is_refused_before_any_work(checkpoint, tmp_path):
    with pytest.raises(MisuseError, match=r"1 position is too few to use the model; export with --context 2 or more"):
        export_model(checkpoint, tmp_path / "out", ExportOptions(context=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("context", [2, 8])
def test_a_context_of_a_few_positions_exports(checkpoint, tmp_path, context):
    manifest = export_model(checkpoint, tmp_path / "out", ExportOptions(context=context))
    assert (manifest.model.max_positions, manifest.made_by["parity"]["steps"]) == (context, min(8, context - 1))


def test_tied_embeddings_are_stored_once(tmp_path):
    write_checkpoint(tmp_path / "checkpoint", tie_word_embeddings=True)
    manifest = export_model(tmp_path / "checkpoint", tmp_path / "out")
    untied = 4 * (2 * VOCAB_SIZE * 64)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    vocab_sized = [tensor.name for tensor in model.graph.initializer if VOCAB_SIZE in tensor.dims]
    assert len(vocab_sized) == 1
    assert manifest.files["model.onnx.data"].size < untied + 4 * 100_000


def test_an_existing_output_is_refused_before_work_and_replaced_when_told(checkpoint, one_trace, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputExistsError):
        export_model("/nowhere/at/all", tmp_path / "out")
    with pytest.raises(OutputExistsError, match="holds precious, which Piston did not write"):
        export_model(checkpoint, tmp_path / "out", ExportOptions(overwrite=True))
    assert (tmp_path / "out" / "precious").exists()
    (tmp_path / "out" / "precious").unlink()
    with one_trace():
        for _ in range(2):
            export_model(checkpoint, tmp_path / "out", ExportOptions(overwrite=True, check_parity=False))


@pytest.mark.parametrize("goal", [".", "..", "model.gguf"])
def test_the_checkpoint_is_never_replaced(checkpoint, goal, tmp_path):
    place = Path(shutil.copytree(checkpoint, tmp_path / "place/checkpoint"))
    (place / "model.gguf").write_bytes(b"GGUF")
    before = sorted(tmp_path.rglob("*"))
    for source in {place, place / goal if goal == "model.gguf" else place}:
        with pytest.raises(MisuseError):
            export_model(source, place / goal, ExportOptions(overwrite=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_verb_prints_one_json_object(checkpoint, one_trace, tmp_path, capsys):
    with one_trace():
        assert main(["export", str(checkpoint), "-o", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert result["architecture"] == "LlamaForCausalLM"
    assert result["parity"]["max_abs"] < 1e-3
    assert result["peak_rss_bytes"] > 0


def test_the_verb_reports_a_refusal_in_one_line(tmp_path, capsys):
    assert main(["export", "/nowhere", "-o", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_options_are_all_part_of_the_verb():
    import argparse

    from piston.export.cli import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {action.dest for action in parser._actions}
    fields = {field.name for field in dataclasses.fields(ExportOptions)} - {"check_parity"}
    assert fields | {"no_parity"} <= known
