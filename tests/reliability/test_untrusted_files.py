"""Whatever a file holds, reading it ends in a value or in one of our errors, soon, and reads nothing elsewhere."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piston.calibration.float_graph import ModelGraph
from piston.core.bundle.external_data import check_external_data
from piston.core.bundle.golden import GoldenByTarget
from piston.core.bundle.manifest import Manifest, record_files
from piston.core.errors import BundleCorruptError, BundleError, Error
from piston.core.schema import SchemaError
from piston.engines import build
from piston.pipeline.cache import read_entry, write_record
from piston.pipeline.lock import Lock
from piston.runtime import load
from piston.runtime.bundle import Bundle
from piston.runtime.text.tokenizer import Tokenizer

soon = settings(deadline=5000, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rerecord(directory):
    """Let the manifest agree with the files that are there now: hashes do not protect against who wrote both."""
    manifest = Manifest.read(directory)
    dataclasses.replace(manifest, files=record_files(directory)).write(directory)


def redirect(graph, location):
    """Point every weight of a graph file to another file."""
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, str(graph))


ESCAPES = ["../secret", "/etc/hostname", "a/../../secret", "link", "nothing.data", "./model.onnx.data/../../secret"]


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_bytes(np.zeros(1 << 20, np.uint8).tobytes())
    return tmp_path / "secret"


@pytest.mark.parametrize("location", ESCAPES)
def test_weights_outside_a_model_directory_are_refused_by_every_stage(model_dir, secret, location):
    redirect(model_dir / "model.onnx", location)
    rerecord(model_dir)
    if location == "link":
        (model_dir / "link").symlink_to(secret)
    with pytest.raises(BundleCorruptError, match="keeps weights in"):
        build(model_dir, model_dir.parent / "out")
    with pytest.raises(BundleCorruptError, match="keeps weights in"):
        ModelGraph.open(model_dir)
    assert not (model_dir.parent / "out").exists()


@pytest.mark.parametrize("location", ESCAPES)
def test_weights_outside_a_bundle_are_not_loaded(bundle, secret, location):
    redirect(bundle / "ort-cpu/model.onnx", location)
    rerecord(bundle)
    if location == "link":
        (bundle / "ort-cpu/link").symlink_to(secret)
    with pytest.raises(Error):
        load(bundle)
    with pytest.raises(BundleCorruptError):
        check_external_data(bundle, Manifest.read(bundle))


def test_the_weights_of_a_sound_bundle_are_beside_its_graph(bundle):
    check_external_data(bundle, Manifest.read(bundle))


@soon
@given(st.binary(max_size=200), st.integers(0, 10**6), st.sampled_from(["manifest.json", "verify.json"]))
def test_a_damaged_description_is_refused_or_means_the_same_shape(made_bundle, tmp_path_factory, data, place, name):
    directory = tmp_path_factory.mktemp("damaged")
    text = bytearray((made_bundle / name).read_bytes())
    start = place % len(text)
    text[start : start + len(data)] = data
    (directory / name).write_bytes(bytes(text))
    for kind in (Manifest, GoldenByTarget):
        try:
            assert isinstance(kind.read(directory), kind)
        except BundleError:
            continue


@soon
@given(st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 3))
def test_a_bundle_with_one_changed_byte_is_refused_before_an_engine_sees_it(made_bundle, position, change, index):
    manifest = Manifest.read(made_bundle)
    name = sorted(manifest.files)[index % len(manifest.files)]
    path = made_bundle / name
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[position % len(damaged)] ^= change
    try:
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleCorruptError, match=name):
            Bundle.open(made_bundle)
    finally:
        path.write_bytes(original)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@soon
@given(JSON)
def test_any_json_is_no_manifest_no_lock_and_no_answers(value):
    with pytest.raises(BundleError):
        Manifest.from_json(value)
    with pytest.raises(SchemaError):
        Lock.from_json(value)


@soon
@given(st.dictionaries(st.sampled_from(["version", "model", "added_tokens", "decoder", "normalizer"]), JSON))
def test_any_json_is_no_tokenizer(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BundleCorruptError, match="Cannot read the tokenizer"):
        Tokenizer.open(path)


@soon
@given(st.binary(max_size=60), st.integers(0, 10**6))
def test_a_damaged_tokenizer_is_refused_or_still_reads_text(made_bundle, tmp_path_factory, data, place):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    text = bytearray((made_bundle / "tokenizer.json").read_bytes())
    start = place % len(text)
    text[start : start + len(data)] = data
    path.write_bytes(bytes(text))
    try:
        tokenizer = Tokenizer.open(path)
    except BundleCorruptError:
        return
    ids = tokenizer.encode("hello world")
    assert isinstance(tokenizer.decode(ids), str)


@soon
@given(st.binary(max_size=60), st.integers(0, 10**4))
def test_a_damaged_cache_record_is_no_entry(tmp_path_factory, data, place):
    directory = tmp_path_factory.mktemp("entry")
    (directory / "output").mkdir()
    (directory / "output/a").write_text("a")
    write_record(directory, {"stage": "build", "result": {}})
    path = directory / "entry.json"
    text = bytearray(path.read_bytes())
    start = place % len(text)
    before = bytes(text)
    text[start : start + len(data)] = data
    path.write_bytes(bytes(text))
    entry = read_entry(directory)
    assert entry is None or entry.record == json.loads(before)["record"]
