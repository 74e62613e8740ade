import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import EngineSpec, FileRecord, Manifest, ModelSpec, TokenizerSpec
from piston.engines.tensorrt.engine_cache import SPEC, EngineCache, key_of
from piston.engines.tensorrt.target import Target

CACHE = CacheSpec.of(num_layers=2, num_kv_heads=2, head_dim=16, dtype="float16")
MODEL = ModelSpec(
    name="toy", architecture="Toy", num_layers=2, hidden_size=64, vocab_size=131, max_positions=96, dtype="float32"
)


def built(work, content=b"plan", target="tensorrt-rtx:sm89"):
    """An engine as a builder leaves it."""
    directory = work / "tensorrt-rtx-sm89"
    directory.mkdir(parents=True)
    (directory / "engine.plan").write_bytes(content)
    path = "tensorrt-rtx-sm89/engine.plan"
    return EngineSpec.of(
        target=target, path=path, cache=CACHE, requested={"max_batch": 2}, actual={"profiles": {"a": [1, 2]}}
    )


def test_what_was_put_is_taken_whole(tmp_path):
    cache, spec = EngineCache(tmp_path / "cache"), built(tmp_path / "one")
    assert cache.take("key", tmp_path / "one") is None
    cache.put("key", tmp_path / "one", spec)
    (tmp_path / "two").mkdir()
    assert cache.take("key", tmp_path / "two") == spec
    assert (tmp_path / "two" / spec.path).read_bytes() == b"plan"
    assert [item.name for item in (tmp_path / "two").iterdir()] == ["tensorrt-rtx-sm89"]


@pytest.mark.parametrize("damage", ["bytes", "missing", "json", "spec"])
def test_a_damaged_entry_is_dropped_and_leaves_nothing(tmp_path, damage):
    cache = EngineCache(tmp_path / "cache")
    cache.put("key", tmp_path / "one", built(tmp_path / "one"))
    entry, plan = tmp_path / "cache/key", tmp_path / "cache/key/files/tensorrt-rtx-sm89/engine.plan"
    if damage == "bytes":
        plan.write_bytes(b"plam")
    elif damage == "missing":
        plan.unlink()
    elif damage == "json":
        (entry / SPEC).write_text("{")
    else:
        (entry / SPEC).write_text(json.dumps({"spec": {"target": 1}, "files": {}}))
    (tmp_path / "two").mkdir()
    assert cache.take("key", tmp_path / "two") is None
    assert list((tmp_path / "two").iterdir()) == []
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["../../stolen", "../stolen", "a/../../stolen", "absolute", "linked/stolen", "", "."])
def test_an_entry_that_names_files_elsewhere_neither_reads_nor_writes_there(tmp_path, name):
    cache = EngineCache(tmp_path / "cache")
    cache.put("key", tmp_path / "one", built(tmp_path / "one"))
    files = tmp_path / "cache/key/files"
    for place in (tmp_path, files.parent, files.parent.parent, tmp_path / "elsewhere"):
        place.mkdir(exist_ok=True)
        (place / "stolen").write_bytes(b"theirs")
    (files / "linked").symlink_to(tmp_path / "elsewhere")
    path = tmp_path / "cache/key" / SPEC
    data = json.loads(path.read_text())
    name = str(tmp_path / "stolen") if name == "absolute" else name
    data["files"] |= {name: hashlib.sha256(b"theirs").hexdigest()}
    path.write_text(json.dumps(data))
    before = sorted(tmp_path.rglob("stolen"))
    (tmp_path / "two/work").mkdir(parents=True)
    assert cache.take("key", tmp_path / "two/work") is None
    assert list((tmp_path / "two").rglob("*")) == [tmp_path / "two/work"]
    left = sorted(tmp_path.rglob("stolen"))
    assert set(before) - set(left) <= {files.parent / "stolen"}  # the entry itself is dropped
    assert all(item.read_bytes() == b"theirs" for item in left)


def test_an_entry_whose_engine_is_none_of_its_files_is_not_taken(tmp_path):
    cache = EngineCache(tmp_path / "cache")
    cache.put("key", tmp_path / "one", built(tmp_path / "one"))
    path = tmp_path / "cache/key" / SPEC
    data = json.loads(path.read_text())
    data["spec"]["path"] = "../elsewhere/engine.plan"
    path.write_text(json.dumps(data))
    (tmp_path / "two").mkdir()
    assert cache.take("key", tmp_path / "two") is None


@pytest.mark.parametrize("name", ["../mine", "../../mine"])
def test_a_file_outside_an_entry_is_not_taken_even_if_it_is_there(tmp_path, name):
    cache = EngineCache(tmp_path / "cache")
    cache.put("key", tmp_path / "one", built(tmp_path / "one"))
    path = tmp_path / "cache/key" / SPEC
    (tmp_path / "cache/key/files" / name).write_bytes(b"mine")
    data = json.loads(path.read_text())
    data["files"] = {name: hashlib.sha256(b"mine").hexdigest()}
    path.write_text(json.dumps(data))
    (tmp_path / "two").mkdir()
    assert cache.take("key", tmp_path / "two") is None
    assert not (tmp_path / "mine").exists()


def test_a_cache_that_cannot_be_made_costs_no_finished_engine(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    spec = built(tmp_path / "one")
    EngineCache(tmp_path / "file/cache").put("key", tmp_path / "one", spec)
    assert (tmp_path / "one" / spec.path).read_bytes() == b"plan"
    assert "is not kept in the cache" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["mkdir", "copy", "rename", "listing"])
def test_a_disk_that_fails_costs_no_finished_engine(tmp_path, monkeypatch, failing, capsys):
    cache, spec = EngineCache(tmp_path / "cache"), built(tmp_path / "one")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {
        "mkdir": (Path, "mkdir"),
        "copy": (shutil, "copytree"),
        "rename": (Path, "rename"),
        "listing": (Path, "iterdir"),
    }
    monkeypatch.setattr(*where[failing], full)
    cache.put("key", tmp_path / "one", spec)
    monkeypatch.undo()
    assert (tmp_path / "one" / spec.path).read_bytes() == b"plan"
    assert failing == "rename" or "No space left on device" in capsys.readouterr().err


def test_a_full_disk_below_the_build_drops_no_engine_that_was_kept(tmp_path, monkeypatch):
    cache, spec = EngineCache(tmp_path / "cache"), built(tmp_path / "one")
    cache.put("key", tmp_path / "one", spec)
    (tmp_path / "two").mkdir()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("piston.engines.tensorrt.engine_cache._copy_hashed", full)
    with pytest.raises(OSError, match="No space"):
        cache.take("key", tmp_path / "two")
    monkeypatch.undo()
    assert cache.take("key", tmp_path / "two") == spec
    assert [item.name for item in (tmp_path / "two").iterdir()] == ["tensorrt-rtx-sm89"]


def test_an_entry_that_another_build_removes_while_sizes_are_taken_costs_no_engine(tmp_path, monkeypatch):
    cache = EngineCache(tmp_path / "cache", limit=1)
    for key in ("a", "b"):
        EngineCache(tmp_path / "cache").put(key, tmp_path / key, built(tmp_path / key))
    listed = Path.rglob

    def removed(path, pattern):
        found = list(listed(path, pattern))
        if path.name == "a":
            shutil.rmtree(path)
        return iter(found)

    monkeypatch.setattr(Path, "rglob", removed)
    cache.put("c", tmp_path / "c", built(tmp_path / "c"))
    assert {item.name for item in (tmp_path / "cache").iterdir()} == {"c"}


def test_the_least_recently_used_go_first(tmp_path):
    cache = EngineCache(tmp_path / "cache", limit=35_000)
    for index, key in enumerate(["a", "b", "c"]):
        cache.put(key, tmp_path / key, built(tmp_path / key, b"x" * 10_000))
        os.utime(tmp_path / "cache" / key, (index, index))
    (tmp_path / "out").mkdir()
    cache.take("a", tmp_path / "out")
    cache.put("d", tmp_path / "d", built(tmp_path / "d", b"x" * 10_000))
    left = {item.name for item in (tmp_path / "cache").iterdir()}
    assert {"a", "d"} <= left
    assert "b" not in left


def test_two_builds_at_once_leave_one_whole_entry(tmp_path):
    cache = EngineCache(tmp_path / "cache")
    specs = [built(tmp_path / str(index)) for index in range(8)]
    threads = [
        threading.Thread(target=cache.put, args=("key", tmp_path / str(index), spec))
        for index, spec in enumerate(specs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.name for item in (tmp_path / "cache").iterdir()] == ["key"]
    (tmp_path / "out").mkdir()
    assert cache.take("key", tmp_path / "out") == specs[0]


def manifest(digest="0" * 64, scheme="fp"):
    files = {"model.onnx": FileRecord(sha256=digest, size=1), "tokenizer.json": FileRecord(sha256=digest, size=1)}
    spec = ModelSpec(**{**{name: getattr(MODEL, name) for name in MODEL.__slots__}, "scheme": scheme})
    return Manifest.of_decoder(kind="model", model=spec, cache=CACHE, tokenizer=TokenizerSpec(), files=files)


def test_the_key_changes_with_everything_that_an_engine_depends_on():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    target, asked = Target.parse("tensorrt-rtx:sm89"), {"max_batch": 2}
    key = key_of(target, manifest(), asked)
    assert key == key_of(target, manifest(), {"max_batch": 2})
    others = [
        key_of(Target.parse("tensorrt-rtx:sm86"), manifest(), asked),
        key_of(target, manifest(), {"max_batch": 3}),
        key_of(target, manifest("1" * 64), asked),
        key_of(target, manifest(scheme="w8a8"), asked),
    ]
    assert len({key, *others}) == 5
