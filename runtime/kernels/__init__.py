"""Piston's own CPU kernels for ONNX Runtime: optional, compiled from src/ by `python -m piston.runtime.kernels`.

Only engines of the target ort-cpu:avx512 need them. Without them, or on a processor without AVX-512 VNNI, such an
engine is refused with the reason.
"""

import ctypes
import functools
import hashlib
import os
from pathlib import Path

from piston.core.cache_dir import cache_dir
from piston.core.errors import EngineError, MissingExtraError

TARGET = "ort-cpu:avx512"  # of the engines that need them
SOURCES = Path(__file__).parent / "src"
FLAGS_VARIABLE = "PISTON_KERNELS_FLAGS"  # more options of the compiler, such as -fsanitize=address
# Every file names the instructions it uses. The rest must run on any x86-64, as it checks for these instructions.
# GCC 12 warns about values that its own vector headers leave undefined on purpose.
# A product and a sum are fused where the sources say so alone: a row among others gets the bits it gets alone.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
# Its threads run as long as the process, so their code must not be unloaded.
LINKING = ("-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wl,-z,nodelete")
LEVELS = ("none", "avx512-vnni", "avx512-bf16", "amx")  # levels that the library reports for the processor


def more_flags() -> list[str]:
    """Compiler options from the environment; a library compiled with them has its own file name."""
    return os.environ.get(FLAGS_VARIABLE, "").split()


def library_paths() -> list[Path]:
    """Possible paths of the library compiled from these sources in this way: next to them, or in the user's cache."""
    digest = hashlib.sha256(" ".join([*FLAGS, *LINKING, *more_flags()]).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"libpiston_kernels-{digest.hexdigest()[:16]}.so"
    return [Path(__file__).parent / name, cache_dir("kernels") / name]


def library_path() -> Path | None:
    """The path of the library compiled from exactly these sources, or None."""
    return next((path for path in library_paths() if path.is_file()), None)


@functools.cache
def open_library() -> ctypes.CDLL:
    """The library, loaded.

    Raises:
        MissingExtraError: it is not compiled.
        EngineError: it cannot be loaded here.
    """
    path = library_path()
    if path is None:
        raise MissingExtraError(
            "Piston's CPU kernels are not compiled; run `python -m piston.runtime.kernels` (it needs a C++ compiler)."
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as problem:
        raise EngineError(f"Piston's CPU kernels cannot be loaded ({problem}); compile them again.") from None
    return library


def level() -> str:
    """The best instructions this processor has for the kernels, of LEVELS; raises as `open_library` does."""
    return LEVELS[open_library().piston_kernels_level()]


def require() -> Path:
    """The library's path, for ONNX Runtime to register.

    Raises:
        MissingExtraError, EngineError: it is not compiled, or the processor lacks its instructions.
    """
    if level() == LEVELS[0]:
        raise EngineError(
            "This processor has no AVX-512 VNNI, which Piston's CPU kernels are made for; use an engine for ort-cpu."
        )
    path = library_path()
    assert path is not None
    return path


def set_threads(count: int) -> None:
    """Set the threads, including the caller's, that kernels use in sessions created by this thread from now on."""
    open_library().piston_kernels_set_threads(count)
