import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = (
    "core",
    "data",
    "runtime",
    "evaluation",
    "bench",
    "cli",
    "pipeline",
)  # what `pip install piston[ort]` can import
PATHS = [path.relative_to(ROOT) for name in LIGHT for path in (ROOT / name).rglob("*.py")]
# The programs that measure rivals run in the rivals' own environments.
MODULES = sorted(
    ".".join(("piston", *path.with_suffix("").parts))
    for path in PATHS
    if path.stem != "__init__" and "adapters" not in path.parts and path.stem != "__main__"
)
HEAVY = ["torch", "transformers", "onnx", "onnx_ir", "onnxscript"]
CHECK = """
import importlib, sys
for name in {blocked!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
import piston.runtime
for name in piston.runtime.__all__:
    getattr(piston.runtime, name)
"""
HELP = """
import sys
from piston.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert leaving.code == 0
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def python(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def test_everything_but_the_build_stages_imports_without_their_libraries():
    result = python(CHECK.format(blocked=HEAVY, modules=MODULES))
    assert result.stderr == ""
    assert result.returncode == 0


def test_the_runtime_imports_without_onnxruntime():
    result = python(CHECK.format(blocked=["onnxruntime"], modules=MODULES))
    assert result.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_waits_for_no_library(words):
    result = python(HELP, *words)
    assert result.stderr == ""
    loaded = result.stdout.rpartition("LOADED")[2].split()
    assert {"numpy", "onnxruntime", "tokenizers", "jinja2", *HEAVY}.isdisjoint(loaded)


@pytest.mark.parametrize("verb", ["inspect", "run", "chat", "serve"])
def test_the_help_of_a_runtime_verb_needs_no_backend(verb):
    result = python(HELP, verb, "--help")
    assert result.stderr == ""
    assert {"onnxruntime", *HEAVY}.isdisjoint(result.stdout.rpartition("LOADED")[2].split())


def test_files_are_hashed_before_what_computes_is_imported():
    result = python(
        "import sys, piston.runtime.model, piston.bench.local\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    assert result.stderr == ""
    assert {"numpy", "onnxruntime", "tokenizers", "jinja2"}.isdisjoint(result.stdout.split())
