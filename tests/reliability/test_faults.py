"""Kills, full disks and directories that cannot be used: a few here, hundreds by scripts/fault_injection.py."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from making import Commands, write_recipe

from piston.core.bundle.manifest import Manifest
from piston.core.errors import Error
from piston.pipeline.make import MakeOptions, make
from piston.pipeline.recipe import read_recipe

NOBODY = 65534
SCRIPT = Path(__file__).parents[2] / "scripts/fault_injection.py"


@contextmanager
def small_disk(place, size):
    """A tmpfs of `size`, if we may mount one."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place, *options):
    subprocess.run(["mount", "-o", f"remount,{','.join(options)}", str(place)], check=True)


def run(recipe, cache, commands):
    return make(read_recipe(recipe), recipe, MakeOptions(cache_dir=cache, run=commands, quiet=True))


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "place")


def test_runs_that_are_killed_at_random_moments_leave_nothing_torn():
    words = [sys.executable, str(SCRIPT), "--fake", "--kills", "12", "--seed", "5"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["kills"], found["torn"]) == (12, 0)


@pytest.mark.slow
def test_stages_that_are_killed_at_random_moments_leave_nothing_torn():
    subprocess.run([sys.executable, str(SCRIPT), "--kills", "60"], check=True, capture_output=True)


def test_a_cache_on_a_full_disk_is_our_error_and_a_larger_disk_mends_it(recipe, tmp_path):
    commands = Commands()
    commands.graph = b"graph" * 100_000
    with small_disk(tmp_path / "cache", "600k") as cache:
        with pytest.raises(Error, match="is full; nothing was written"):
            run(recipe, cache, commands)
        assert not list(cache.rglob("*.part"))
        remount(cache, "size=50m")
        commands.calls.clear()
        assert run(recipe, cache, commands).is_published
        assert "export" in commands.calls or commands.calls[0] == "calibrate"


def test_an_output_on_a_full_disk_leaves_the_old_bundle(tmp_path):
    commands = Commands()
    with small_disk(tmp_path / "place", "1m") as place:
        recipe = write_recipe(place)
        assert run(recipe, tmp_path / "cache", commands).is_published
        old = (place / "out/bundle/manifest.json").read_bytes()
        commands.engine = b"larger" * 200_000
        (place / "rows.txt").write_text("other rows")
        with pytest.raises(Error, match="is full"):
            run(recipe, tmp_path / "cache", commands)
        assert (place / "out/bundle/manifest.json").read_bytes() == old
        Manifest.read(place / "out/bundle").verify(place / "out/bundle")
        assert sorted(path.name for path in (place / "out").iterdir()) == ["bundle"]
        remount(place, "size=50m")
        assert run(recipe, tmp_path / "cache", commands).is_published


def test_a_read_only_cache_is_our_error_before_any_stage(recipe, tmp_path):
    commands = Commands()
    with small_disk(tmp_path / "cache", "1m") as cache:
        remount(cache, "ro")
        with pytest.raises(Error, match=r"Cannot write the cache .*--cache-dir"):
            run(recipe, cache, commands)
    assert commands.calls == []


def test_a_read_only_output_is_our_error_and_keeps_what_was_made(tmp_path):
    commands = Commands()
    with small_disk(tmp_path / "place", "1m") as place:
        recipe = write_recipe(place)
        remount(place, "ro")
        with pytest.raises(Error, match="Cannot write next to"):
            run(recipe, tmp_path / "cache", commands)
        remount(place, "rw")
        commands.calls.clear()
        assert run(recipe, tmp_path / "cache", commands).is_published
    assert commands.calls == []


def as_nobody(work):
    """Run in a child that permissions bind, as they do not bind root; the words of the error of ours, or nothing."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            try:
                work()
            except (Error, OSError) as problem:  # what the command line tells in a line
                os.write(writing, str(problem).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    assert os.waitpid(pid, 0)[1] == 0, "neither done nor an error that is told"
    return text


@pytest.mark.parametrize("name", ["model.gguf", "recipe.toml", "rows.txt", "cache", "cache/build", "cache/build/*"])
def test_what_cannot_be_read_is_told_or_made_again_and_the_old_bundle_stays(name):
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        recipe = write_recipe(home / "place")
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY) if os.geteuid() == 0 else None
        work = functools.partial(run, recipe, recipe.parent / "cache", Commands())
        assert as_nobody(work) == ""
        (hidden,) = [path for path in recipe.parent.glob(name) if not path.name.startswith(".")]
        mode = hidden.stat().st_mode
        hidden.chmod(0)
        assert as_nobody(work) != ""
        Manifest.read(recipe.parent / "out/bundle").verify(recipe.parent / "out/bundle")
        hidden.chmod(mode)
        assert as_nobody(work) == ""


@pytest.mark.parametrize("name", ["model.gguf", "recipe.toml"])
def test_an_input_that_is_a_directory_is_our_error(recipe, tmp_path, name):
    path = recipe.parent / name
    path.unlink()
    path.mkdir()
    with pytest.raises(Error):
        run(recipe, tmp_path / "cache", Commands())
    assert not (recipe.parent / "out").exists()


def test_an_entry_that_is_a_file_is_made_again(recipe, tmp_path):
    commands, cache = Commands(), tmp_path / "cache"
    run(recipe, cache, commands)
    (entry,) = [path for path in (cache / "build").iterdir() if not path.name.startswith(".")]
    for path in sorted(entry.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    entry.rmdir()
    entry.write_text("no directory")
    commands.calls.clear()
    assert run(recipe, cache, commands).is_published
    assert commands.calls == ["build"]
