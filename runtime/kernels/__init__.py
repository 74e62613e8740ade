"""Piston's own CPU kernels for ONNX Runtime: optional, compiled from src/ by `python -m piston.runtime.kernels`.

Engines of the target ort-cpu:avx512 are made of them. Nothing else needs them, and they never take another engine's
place: without them, or on a processor without AVX-512 VNNI, such an engine is refused with the reason.
"""

import ctypes
import functools
import hashlib
from pathlib import Path

from piston.core.errors import EngineError, MissingExtraError

TARGET = "ort-cpu:avx512"  # of the engines that need them
SOURCES = Path(__file__).parent / "src"
LEVELS = ("none", "avx512-vnni", "amx")  # what the library says of the processor


def library_path() -> Path:
    """Where the compiled library of these very sources lies: another version's is never found."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return Path(__file__).parent / f"libpiston_kernels-{digest.hexdigest()[:16]}.so"


@functools.cache
def open_library() -> ctypes.CDLL:
    """The library, loaded.

    Raises:
        MissingExtraError: it is not compiled.
        EngineError: it cannot be loaded here.
    """
    path = library_path()
    if not path.is_file():
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
    return library_path()
