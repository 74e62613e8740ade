import contextlib
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import edit_manifest, manifest_of, write_bundle

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import SCHEMA, FileRecord, Manifest, record_files, sha256_of
from piston.core.errors import BundleCorruptError, BundleNotFoundError, BundleTooNewError, Error
from piston.runtime.bundle import Bundle

FULL = manifest_of(
    files={"a.bin": FileRecord(sha256="0" * 64, size=3), "ort-cpu/model.onnx": FileRecord(sha256="1" * 64, size=5)},
    generation={"temperature": 0.6},
    made_by={"piston": "0.1.0", "parity": {"max": 1e-5}},
)
PLAIN = json.loads(json.dumps(dataclasses.asdict(FULL)))
TENSOR, STATE = ("name", "dtype", "shape", "role"), ("input", "output", "dtype", "shape", "axis", "kind", "layer")
REQUIRED = [
    "kind",
    "model",
    "graphs",
    "tokenizer",
    "files",
    "model.name",
    "model.architecture",
    "model.num_layers",
    "model.hidden_size",
    "model.vocab_size",
    "model.max_positions",
    "model.dtype",
    "graphs.decoder.inputs",
    "graphs.decoder.outputs",
    *(f"graphs.decoder.inputs[0].{name}" for name in TENSOR),
    *(f"graphs.decoder.outputs[0].{name}" for name in TENSOR),
    *(f"graphs.decoder.states[0].{name}" for name in STATE),
    "files.a.bin.sha256",
    "files.a.bin.size",
    "engines[0].target",
    "engines[0].files",
    "engines[0].states",
    *(f"engines[0].states.decoder[0].{name}" for name in STATE),
    "engines[0].requested",
    "engines[0].actual",
]
OPTIONAL = [
    "model.scheme",
    "model.num_heads",
    "tokenizer.eos_token_ids",
    "tokenizer.bos_token_id",
    "tokenizer.pad_token_id",
    "tokenizer.special_tokens",
    "tokenizer.has_chat_template",
    "tokenizer.unknown_ids",
    "task",
    "engines",
    "settings",
    "requires",
    "generation",
    "made_by",
]
WRONG = {  # of each field, a value of the wrong type
    "kind": "folder",
    "model": [],
    "task": 7,
    "graphs": "none",
    "graphs.decoder": None,
    "graphs.decoder.inputs": {},
    "graphs.decoder.inputs[0].name": 1,
    "graphs.decoder.inputs[0].dtype": "int7",
    "graphs.decoder.inputs[0].shape": 4,
    "graphs.decoder.inputs[0].role": "hat",
    "graphs.decoder.outputs[0]": "logits",
    "graphs.decoder.states": "past",
    "graphs.decoder.states[0].input": None,
    "graphs.decoder.states[0].output": 2,
    "graphs.decoder.states[0].dtype": "int4",
    "graphs.decoder.states[0].shape": "4",
    "graphs.decoder.states[0].axis": -1,
    "graphs.decoder.states[0].kind": "heap",
    "graphs.decoder.states[0].layer": "0",
    "settings": [],
    "requires": "all",
    "tokenizer": 3,
    "files": ["a.bin"],
    "files.a.bin": None,
    "engines": {},
    "engines[0]": "ort-cpu",
    "engines[0].target": 1,
    "engines[0].files": None,
    "engines[0].files.decoder": 3,
    "engines[0].states": "fp16",
    "engines[0].states.decoder": {},
    "engines[0].states.decoder[0].dtype": "int4",
    "engines[0].requested": [1],
    "engines[0].actual": "much",
    "generation": [],
    "made_by": "hand",
    "model.name": 5,
    "model.architecture": None,
    "model.num_layers": "2",
    "model.hidden_size": 2.0,
    "model.vocab_size": True,
    "model.max_positions": -1,
    "model.dtype": "float8",
    "model.scheme": 8,
    "model.num_heads": "12",
    "tokenizer.eos_token_ids": 2,
    "tokenizer.eos_token_ids[0]": "2",
    "tokenizer.bos_token_id": "1",
    "tokenizer.pad_token_id": -1,
    "tokenizer.special_tokens": ["<s>"],
    "tokenizer.special_tokens.eos_token": None,
    "tokenizer.has_chat_template": "yes",
    "tokenizer.unknown_ids": 2,
    "files.a.bin.sha256": 0,
    "files.a.bin.size": "3",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def tree():
    return json.loads(json.dumps(PLAIN))


def parent_of(data, field):
    """The container of a field such as files.a.bin.size, and its key."""
    field = field.replace("a.bin", "a~bin").replace("[0]", ".0")
    *path, last = [int(part) if part.isdigit() else part.replace("~", ".") for part in field.split(".")]
    for part in path:
        data = data[part]
    return data, last


def fields_of(data, prefix=""):
    for key, value in data.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from fields_of(value, prefix + key + ".")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from fields_of(value[0], f"{prefix}{key}[0].")


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_what_was_written_is_read(tmp_path):
    FULL.write(tmp_path)
    assert Manifest.read(tmp_path) == FULL


def test_names_outside_ascii_are_written_as_they_are(tmp_path):
    manifest = manifest_of(files={"größe-模型.bin": FileRecord(sha256="", size=0)})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert "größe-模型" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", REQUIRED)
def test_a_field_that_is_missing_is_named(field):
    data = tree()
    container, key = parent_of(data, field)
    del container[key]
    with pytest.raises(BundleCorruptError, match="field") as problem:
        Manifest.from_json(data, source="here.json")
    assert f"field {field} is missing" in str(problem.value)
    assert "here.json" in str(problem.value)


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_with_a_default_may_be_missing(field):
    data = tree()
    container, key = parent_of(data, field)
    del container[key]
    assert isinstance(Manifest.from_json(data), Manifest)


@pytest.mark.parametrize("field", WRONG)
def test_a_field_of_the_wrong_type_is_named_with_its_value(field):
    data = tree()
    container, key = parent_of(data, field)
    container[key] = WRONG[field]
    with pytest.raises(BundleCorruptError) as problem:
        Manifest.from_json(data)
    assert f"{field} " in str(problem.value)
    assert repr(WRONG[field]) in str(problem.value)


def test_the_tables_above_have_every_field():
    known = {*REQUIRED, *OPTIONAL, *WRONG, "schema"}
    free = (
        "engines[0].requested.",
        "engines[0].states.decoder",
        "made_by.",
        "generation.",
        "files.ort-cpu",
        "tokenizer.special_tokens.",
    )
    missing = {name for name in fields_of(PLAIN) if name not in known and not name.startswith(free)}
    assert missing == set()


@pytest.mark.parametrize("where", ["", "model.", "graphs.decoder.", "tokenizer.", "engines[0].", "files.a.bin."])
def test_a_field_that_is_not_known_is_ignored(where):
    data = tree()
    container, key = parent_of(data, f"{where}colour")
    container[key] = "red"
    assert Manifest.from_json(data) == FULL


def test_a_field_that_is_required_and_not_known_is_too_new():
    with pytest.raises(BundleTooNewError, match="'adapters'"):
        Manifest.from_json(tree() | {"adapters": {}, "requires": ["graphs", "adapters"]})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"shape": [2, 2, "capacity", 16]}, "does not begin with the batch"),
        ({"axis": 3}, "not the one that grows"),
        ({"axis": 9}, "not the one that grows"),
        ({"axis": None}, "not the one that grows"),
        ({"shape": ["batch", "capacity", 16], "axis": 1}, "not [batch, kv_heads, capacity, head_dim]"),
        ({"shape": ["batch", 0, "capacity", 16]}, "a size is 0"),
        ({"shape": ["batch", "batch", "capacity", 16]}, "does not begin with the batch"),
    ],
)
@pytest.mark.parametrize("where", ["graphs.decoder.states", "engines[0].states.decoder"])
def test_a_state_that_contradicts_itself_is_named(where, change, problem):
    data = tree()
    container, key = parent_of(data, where)
    container[key][0].update(change)
    with pytest.raises(BundleCorruptError, match=r"past\.0\.key") as raised:
        Manifest.from_json(data)
    assert problem in str(raised.value)


@pytest.mark.parametrize("files", [{}, {"encoder": "ort-cpu/model.onnx"}])
def test_an_engine_with_other_graphs_than_the_manifest_is_corrupt(files):
    data = tree()
    data["engines"][0]["files"] = files
    with pytest.raises(BundleCorruptError, match="the manifest has decoder"):
        Manifest.from_json(data)


def test_an_engine_with_other_states_than_its_graph_is_corrupt():
    data = tree()
    data["engines"][0]["states"]["decoder"].pop()
    with pytest.raises(BundleCorruptError, match="other states than its graph"):
        Manifest.from_json(data)


def test_a_language_model_without_states_is_corrupt():
    data = tree()
    data["graphs"]["decoder"]["states"] = []
    with pytest.raises(BundleCorruptError, match="no decoder with states"):
        Manifest.from_json(data)


def test_layers_may_differ_in_heads_and_in_the_sizes_of_keys_and_values():
    cache = CacheSpec.of_layers([((2, 16), (2, 8)), ((1, 32), (1, 32))], "float16")
    shapes = [state.sizes(3, 5) for state in cache.states]
    assert shapes == [(3, 2, 5, 16), (3, 2, 5, 8), (3, 1, 5, 32), (3, 1, 5, 32)]
    assert cache.bytes_per_token == 2 * (2 * 16 + 2 * 8 + 32 + 32)
    assert cache.num_layers == 2


OLD_CACHE = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "dtype": "float32"}


def schema_1():
    """The same manifest as schema 1 wrote it."""
    data = {name: value for name, value in tree().items() if name not in {"graphs", "task", "settings", "requires"}}
    engine = {
        "target": "ort-cpu",
        "path": "ort-cpu/model.onnx",
        "cache": OLD_CACHE,
        "asked": {"max_batch": 2},
        "got": {},
    }
    return data | {"schema": 1, "cache": OLD_CACHE, "engines": [engine]}


def test_a_manifest_of_schema_1_means_the_same():
    assert Manifest.from_json(schema_1()) == FULL


@pytest.mark.parametrize("name", ["cache", "model"])
def test_a_manifest_of_schema_1_that_lacks_a_field_is_corrupt(name):
    data = schema_1()
    del data[name]
    with pytest.raises(BundleCorruptError, match=f"field {name} is missing"):
        Manifest.from_json(data)


@given(field=st.sampled_from(["cache", "model", "engines", "cache.head_dim", "engines[0].cache.dtype"]), value=JSON)
@settings(deadline=None)
def test_no_value_in_schema_1_crashes_the_reader(field, value):
    data = schema_1()
    container, key = parent_of(data, field)
    container[key] = value
    with contextlib.suppress(Error):
        Manifest.from_json(data)


def test_a_newer_schema_tells_both_numbers_whatever_else_it_holds():
    with pytest.raises(BundleTooNewError, match=rf"schema {SCHEMA + 1}, but this Piston reads up to {SCHEMA}"):
        Manifest.from_json({"schema": SCHEMA + 1, "colour": "red"})


@pytest.mark.parametrize("schema", [None, "1", 0, -1, True, 1.0, []])
def test_what_has_no_schema_number_is_no_manifest(schema):
    with pytest.raises(BundleCorruptError, match="no schema number"):
        Manifest.from_json(tree() | {"schema": schema})


@pytest.mark.parametrize("data", [None, [], 3, "manifest", {}])
def test_json_that_is_no_object_is_no_manifest(data):
    with pytest.raises(BundleCorruptError, match="not a manifest"):
        Manifest.from_json(data)


def test_a_message_shows_no_more_than_the_beginning_of_a_value():
    with pytest.raises(BundleCorruptError) as problem:
        Manifest.from_json(tree() | {"kind": "x" * 100_000})
    assert len(str(problem.value)) < 500


@pytest.mark.parametrize("depth", [50, 400, 900, 100_000])
@pytest.mark.parametrize("opening", ['{"schema": 1, "kind": ', ""])
def test_json_nested_deeper_than_python_reads_is_corrupt(tmp_path, depth, opening):
    text = opening + "[" * depth + "]" * depth + "}" * bool(opening)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleCorruptError):
        Manifest.read(tmp_path)


def test_a_directory_without_manifest_is_not_found(tmp_path):
    with pytest.raises(BundleNotFoundError, match=r"No manifest\.json in"):
        Manifest.read(tmp_path)


def test_a_missing_directory_is_not_found(tmp_path):
    with pytest.raises(BundleNotFoundError):
        Manifest.read(tmp_path / "nowhere")


def test_a_file_in_place_of_the_directory_is_not_found(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleNotFoundError):
        Manifest.read(tmp_path / "file")


def test_a_manifest_that_is_a_directory_is_corrupt(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleCorruptError, match="cannot be read"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"NaN", b"[1", b"9" * 5000])
def test_a_manifest_that_is_not_json_is_corrupt(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


@given(content=st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_crash_the_reader(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("bytes")  # the directory of all tests is not this one's
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(Error):
        Manifest.read(directory)


@given(data=JSON)
@settings(deadline=None)
def test_no_json_crashes_the_reader(data):
    with pytest.raises(Error):
        Manifest.from_json(data)


@given(field=st.sampled_from([*REQUIRED, *OPTIONAL, *WRONG]), value=JSON)
@settings(deadline=None, max_examples=300)
def test_no_value_of_a_field_crashes_the_reader_or_the_check_of_files(tmp_path_factory, field, value):
    data = tree()
    container, key = parent_of(data, field)
    container[key] = value
    with contextlib.suppress(Error):
        Manifest.from_json(data).verify(tmp_path_factory.getbasetemp())


@given(name=st.text(max_size=300), size=st.integers(0, 10))
@settings(deadline=None, max_examples=300)
def test_no_file_name_crashes_the_check_of_files(tmp_path_factory, name, size):
    manifest = manifest_of(files={name: FileRecord(sha256="", size=size)}, engines=())
    with pytest.raises(BundleCorruptError):
        manifest.verify(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "\ud800", "", "."])
def test_a_file_name_that_no_disk_takes_is_a_file_that_is_missing(tmp_path, name):
    with pytest.raises(BundleCorruptError, match="lacks"):
        manifest_of(files={name: FileRecord(sha256="", size=0)}, engines=()).verify(tmp_path)


def test_the_files_of_a_fresh_bundle_pass(bundle):
    Manifest.read(bundle).verify(bundle)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "ort-cpu/model.onnx"])
def test_a_changed_byte_names_its_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleCorruptError, match=rf"{name} is not the file that was recorded"):
        Bundle.open(bundle)


def test_a_changed_size_names_the_file_with_both_sizes(bundle):
    path = bundle / "tokenizer.json"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleCorruptError, match=rf"tokenizer\.json has {size + 1} bytes, {size} were recorded"):
        Bundle.open(bundle)


def test_a_missing_file_is_named(bundle):
    (bundle / "ort-cpu/model.onnx").unlink()
    with pytest.raises(BundleCorruptError, match=r"lacks ort-cpu/model\.onnx"):
        Bundle.open(bundle)


def test_a_directory_in_place_of_a_file_is_named(bundle):
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").mkdir()
    with pytest.raises(BundleCorruptError, match=r"lacks tokenizer\.json"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../secret", "ort-cpu/../../secret", "/etc/hostname"])
def test_a_recorded_file_outside_the_directory_is_refused_by_name(bundle, name):
    (bundle.parent / "secret").write_bytes(b"x")
    record = {"sha256": sha256_of(bundle.parent / "secret"), "size": 1}
    edit_manifest(bundle, lambda data: data["files"].update({name: record}))
    with pytest.raises(BundleCorruptError, match=f"{name}.*outside the directory"):
        Bundle.open(bundle)


@pytest.mark.parametrize("path", ["../model.onnx", "/opt/model.onnx", "other/model.onnx", ""])
def test_an_engine_whose_file_is_not_recorded_is_refused_by_name(bundle, path):
    edit_manifest(bundle, lambda data: data["engines"][0]["files"].update(decoder=path))
    with pytest.raises(BundleCorruptError, match="is not among the recorded files") as problem:
        Bundle.open(bundle)
    assert repr(path) in str(problem.value)


def test_every_file_is_recorded_by_its_relative_name(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/file").write_bytes(b"abc")
    (tmp_path / "manifest.json").write_bytes(b"{}")
    assert record_files(tmp_path) == {"deep/er/file": FileRecord(sha256=sha256_of(tmp_path / "deep/er/file"), size=3)}


def test_a_manifest_of_something_else_further_down_is_recorded(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/manifest.json").write_bytes(b"{}")
    assert list(record_files(tmp_path)) == ["deep/manifest.json"]


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(("dtype", "size"), [("float32", 2 * 30 * 3 * 64 * 4), ("bfloat16", 2 * 30 * 3 * 64 * 2)])
def test_bytes_per_token_count_keys_and_values_of_all_layers(dtype, size):
    assert CacheSpec.of(num_layers=30, num_kv_heads=3, head_dim=64, dtype=dtype).bytes_per_token == size


@pytest.mark.parametrize("size", [0, 1, 64, 65, 200])
def test_a_file_is_hashed_whole_however_it_is_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr("piston.core.bundle.manifest.HASHED_AT_ONCE", 64)
    data = bytes(range(256))[:size]
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
