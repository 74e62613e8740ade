"""Compiles the kernels with one call of the C++ compiler, next to the sources or into the user's cache."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from piston.core.cache_dir import VARIABLE
from piston.core.errors import EngineError, MissingExtraError
from piston.runtime.kernels import FLAGS, LINKING, SOURCES, library_path, library_paths, more_flags

COMPILERS = ("g++", "c++", "clang++")


def compile_library(compiler: str | None = None) -> Path:
    """Compile the kernels, unless they are compiled already, and return the library's path.

    Raises:
        MissingExtraError: there is no C++ compiler.
        EngineError: not an x86-64 Linux, the compiler refuses the sources, or no directory can be written.
    """
    if (done := library_path()) is not None:
        return done
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EngineError(
            f"Piston's CPU kernels need x86-64 Linux, not {sys.platform} {platform.machine()}; use ort-cpu."
        )
    found = shutil.which(compiler) if compiler else next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise MissingExtraError(f"No C++ compiler found ({compiler or ', '.join(COMPILERS)}); install g++ 12 or later.")
    problems = []
    for goal in library_paths():
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=goal.parent) as work:
                made = _compile(found, Path(work) / goal.name)
                os.replace(made, goal)  # noqa: PTH105 - whoever looks meanwhile sees no library or a whole one
        except OSError as problem:
            problems.append(f"{goal.parent}: {problem.strerror}")
        else:
            return goal
    raise EngineError(
        f"Piston's CPU kernels cannot be written ({'; '.join(problems)}); set {VARIABLE} to a writable directory."
    )


def _compile(compiler: str, goal: Path) -> Path:
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    words = [compiler, *FLAGS, *more_flags(), *LINKING, *sources, "-o", str(goal)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise EngineError(f"{compiler} cannot compile Piston's CPU kernels: {first}")
    return goal
