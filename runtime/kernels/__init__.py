"""Piston's own CPU kernels for ONNX Runtime: optional, compiled from src/ by `python -m piston.runtime.kernels`.

Engines of the target ort-cpu:avx512 are made of them. Nothing else needs them, and they never take another engine's
place: without them, or on a processor without AVX-512 VNNI, such an engine is refused with the reason.
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
LEVELS = ("none", "avx512-vnni", "amx")  # what the library says of the processor


def more_flags() -> list[str]:
    """What the environment adds to the compiler's options: a library made with them is another library."""
    return os.environ.get(FLAGS_VARIABLE, "").split()


def library_paths() -> list[Path]:
    """Where the compiled library of these very sources may lie: beside them, or in the cache of this user."""
    digest = hashlib.sha256(" ".join(more_flags()).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"libpiston_kernels-{digest.hexdigest()[:16]}.so"
    return [Path(__file__).parent / name, cache_dir("kernels") / name]


def library_path() -> Path | None:
    """Where the compiled library of these very sources lies: another version's is never found; None where it is not."""
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
    """Let the kernels of sessions that this thread makes from now on use so many threads, the caller's included."""
    open_library().piston_kernels_set_threads(count)
