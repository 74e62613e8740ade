"""One call of the C++ compiler: sources in, library beside them out."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from piston.core.errors import EngineError, MissingExtraError
from piston.runtime.kernels import SOURCES, library_path

# Every file names the instructions it uses; the rest must run on any x86-64, for it decides whether they may be.
# GCC 12 warns of what its own vector headers leave undefined on purpose.
FLAGS = ("-O3", "-std=c++17", "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
LINKING = ("-shared", "-fPIC", "-fvisibility=hidden")
COMPILERS = ("g++", "c++", "clang++")


def compile_library(compiler: str | None = None) -> Path:
    """Compile the kernels and return where the library is; done already, it does nothing.

    Raises:
        MissingExtraError: there is no C++ compiler.
        EngineError: not an x86-64 Linux, or the compiler refuses the sources.
    """
    if (goal := library_path()).is_file():
        return goal
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EngineError(f"Piston's CPU kernels are for x86-64 Linux, this is {sys.platform} {platform.machine()}.")
    found = shutil.which(compiler) if compiler else next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise MissingExtraError(f"No C++ compiler found ({compiler or ', '.join(COMPILERS)}); install g++ 12 or later.")
    with tempfile.TemporaryDirectory(dir=goal.parent) as work:
        made = Path(work) / goal.name
        sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
        words = [found, *FLAGS, *LINKING, *sources, "-o", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise EngineError(f"{found} cannot compile Piston's CPU kernels: {first}")
        os.replace(made, goal)  # noqa: PTH105 - whoever looks meanwhile sees no library or a whole one
    return goal
