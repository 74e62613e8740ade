"""Where the compiled kernels are written, and found again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from piston.core.errors import EngineError
from piston.runtime import kernels
from piston.runtime.kernels import compiling
from piston.runtime.kernels.compiling import COMPILERS, compile_library


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that cannot be written and a cache that can, neither with a library; the compiler writes a word."""
    package, cache = tmp_path / "site-packages" / "kernels", tmp_path / "cache"
    package.mkdir(parents=True)
    paths = [package / "lib.so", cache / "kernels" / "lib.so"]
    monkeypatch.setattr(kernels, "library_paths", lambda: paths)
    monkeypatch.setattr(compiling, "library_paths", lambda: paths)
    compiled = []

    def fake(_compiler, goal):
        compiled.append(goal)
        goal.write_text("library")
        return goal

    monkeypatch.setattr(compiling, "_compile", fake)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    make = compiling.tempfile.TemporaryDirectory

    def read_only(dir):  # noqa: A002
        if Path(dir) == package:  # a mode would not stop root
            raise PermissionError(13, "Permission denied", str(dir))
        return make(dir=dir)

    monkeypatch.setattr(compiling.tempfile, "TemporaryDirectory", read_only)
    return paths, compiled


def test_a_package_that_cannot_be_written_leaves_the_library_in_the_cache(installed):
    (beside, cached), compiled = installed
    assert compile_library() == cached
    assert cached.read_text() == "library"
    assert not beside.exists()
    assert kernels.library_path() == cached
    assert compile_library() == cached  # it is found, and not compiled again
    assert len(compiled) == 1


def test_a_library_beside_its_sources_is_found_first(installed):
    (beside, cached), _ = installed
    compile_library()
    beside.write_text("library")
    assert kernels.library_path() == beside
    assert cached.exists()


def test_where_nothing_can_be_written_the_reason_and_the_remedy_are_given(installed):
    (_, cached), _ = installed
    cached.parent.parent.write_text("a file where the cache should be")
    with pytest.raises(EngineError, match=r"Permission denied.*Not a directory.*PISTON_CACHE_DIR"):
        compile_library()


def test_libraries_of_other_options_have_other_names(monkeypatch):
    plain = kernels.library_paths()
    monkeypatch.setenv(kernels.FLAGS_VARIABLE, "-g")
    assert not set(plain) & set(kernels.library_paths())


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")
def test_the_command_says_in_a_line_what_it_cannot_write(tmp_path):
    file = tmp_path / "file"
    file.touch()
    script = (
        "import sys; from pathlib import Path; from piston.runtime import kernels; from piston.runtime.kernels import "
        "compiling, __main__ as command; "
        f"places = lambda: [Path({str(file)!r}) / 'lib.so']; "
        "kernels.library_paths = compiling.library_paths = places; sys.exit(command.main())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Piston's CPU kernels cannot be written")
    assert done.stderr.count("\n") == 1


def test_a_library_compiled_with_other_options_has_another_name(monkeypatch):
    before = kernels.library_paths()
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-ffast-math"))
    assert not {path.name for path in before} & {path.name for path in kernels.library_paths()}
