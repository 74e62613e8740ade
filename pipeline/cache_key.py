"""Cache keys: hashes of files, of Piston's code, of tool versions and of this machine."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from piston.core.bundle.manifest import sha256_of
from piston.core.errors import MisuseError
from piston.core.json_text import json_text
from piston.core.machine import num_cpus

TOOLS = {  # verb: the distributions whose version may change its result
    "export": (
        "accelerate",
        "gguf",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxscript",
        "sentencepiece",
        "tokenizers",
        "torch",
        "transformers",
    ),
    "calibrate": (
        "av",
        "jinja2",
        "jiwer",
        "ml-dtypes",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "sacrebleu",
        "tokenizers",
    ),
    "build": ("numpy", "onnx", "onnx-ir", "onnxruntime", "tensorrt-cu13", "tensorrt-rtx-cu13", "tokenizers"),
}
COMPILED = (".pyc", ".so")  # generated from the sources next to them
PAGES = "piston.core.report"  # modules that only show results: an input only of stages that name them
RUN_TOOLS = (
    "av",
    "jinja2",
    "jiwer",
    "numpy",
    "onnxruntime",
    "sacrebleu",
    "tensorrt-cu13",
    "tensorrt-lean-cu13",
    "tensorrt-rtx-cu13",
    "tokenizers",
)
PACKAGES = {  # verb: the packages whose code may change its result
    "export": ("piston.core", "piston.runtime", "piston.graph", "piston.checkpoint", "piston.export"),
    "calibrate": (
        "piston.core",
        "piston.runtime",
        "piston.data",
        "piston.evaluation",
        "piston.graph",
        "piston.calibration",
    ),
    "build": ("piston.core", "piston.runtime", "piston.graph", "piston.engines"),
    "verify": ("piston.core", "piston.runtime"),
    "eval": ("piston.core", "piston.core.report", "piston.runtime", "piston.evaluation"),  # its page is kept
    "bench": ("piston.core", "piston.runtime", "piston.evaluation", "piston.bench"),
}


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json_text(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def files_of_checkpoint(path: Path) -> dict[str, str]:
    """SHA-256 by name: of a file, or of a directory's files, hidden ones and folders aside but those that belong to it.

    These are chat templates, and modules of sentence-transformers such as 1_Pooling.
    """
    if path.is_file():
        return {path.name: sha256_of(path)}
    if not path.is_dir():
        raise MisuseError(f"Checkpoint {path} does not exist; correct checkpoint.source, or give --checkpoint PATH.")
    items = [*path.iterdir(), *path.glob("additional_chat_templates/*.jinja"), *path.glob("[0-9]*_*/*")]
    files = sorted(item for item in items if item.is_file() and not item.name.startswith("."))
    return {item.relative_to(path).as_posix(): sha256_of(item) for item in files}


def digest_of_files(files: dict[str, str]) -> str:
    """The SHA-256 of one file; for several, that of the lines `sha256  name`, as sha256sum prints them."""
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tools_of(verb: str) -> dict[str, str]:
    """Versions of the installed distributions that a verb uses."""
    found = {"piston": importlib.metadata.version("piston"), "python": platform.python_version()}
    for name in TOOLS.get(verb, RUN_TOOLS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_of(verb: str) -> str:
    """SHA-256 of the source of the packages a verb uses: the version of a checkout does not change with its commits."""
    return digest_of({name: _sources(name) for name in PACKAGES[verb]})


def machine() -> dict[str, str]:
    """The machine's properties on which measured times, and the last bits of results, depend."""
    return {"system": platform.system(), "machine": platform.machine(), "cpu": _cpu(), "cpus": str(num_cpus())}


def hashed_files(values: Iterable[Any], base: Path) -> dict[str, str]:
    """SHA-256 of each string that names a file, relative to `base`; for a directory the hash of its manifest."""
    found = {}
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            path = base / text
            for candidate in (path, path / "manifest.json"):
                if _is_file(candidate):
                    found[text] = sha256_of(candidate)
    return found


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises on a name that is too long (3.11)


def _sources(package: str) -> dict[str, str]:
    spec = importlib.util.find_spec(package)
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    shown = PAGES.removeprefix(f"{package}.").replace(".", "/")
    return {
        path.relative_to(root).as_posix(): sha256_of(path)
        for root in roots
        for path in sorted(root.rglob("*"))  # data files too: calibration texts, sources of kernels
        if path.is_file() and path.suffix not in COMPILED and not path.is_relative_to(root / shown)
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
