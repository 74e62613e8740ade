"""An environment with `piston[ort,serve]` alone: what is in it, what it weighs, and that it runs a bundle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "accelerate", "fastapi", "pydantic")
NOT_SOURCE = (".*", "models", "bundles", "build", "*.egg-info", "__pycache__", "tests")
INSTALLED_LIMIT = 230e6  # bytes, without pip


def installed_bytes(site):
    return sum(
        path.stat().st_size
        for path in site.rglob("*")
        if path.is_file()
        and path.relative_to(site).parts[0].split("-")[0] not in ("pip", "setuptools", "pkg_resources")
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh venv's python, with the wheel of this tree and what running and serving take."""
    directory = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-compile"]
    # A copy: an in-tree build would leave build/lib behind, and its stale modules in every later wheel.
    source = shutil.copytree(ROOT, directory.parent / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    subprocess.run([*install, "-c", ROOT / "constraints.txt", f"{source}[ort,serve]"], check=True, cwd=directory)
    return python


def run(python, *words, cwd):
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FORCE_COLOR")}
    return subprocess.run([python, *words], capture_output=True, text=True, cwd=cwd, env=clean, check=False)


def test_no_build_library_is_installed(environment, tmp_path):
    code = f"import importlib.util as u; print([n for n in {FORBIDDEN!r} if u.find_spec(n)])"
    assert run(environment, "-c", code, cwd=tmp_path).stdout == "[]\n"


def test_it_stays_below_its_installed_size(environment, tmp_path):
    site = Path(run(environment, "-c", "import numpy; print(numpy.__path__[0])", cwd=tmp_path).stdout.strip()).parent
    assert installed_bytes(site) < INSTALLED_LIMIT


@pytest.mark.model
def test_it_runs_a_bundle(environment, demo_bundle, tmp_path):
    words = ("-m", "piston.cli.main", "run", demo_bundle, "--chat", "--prompt", "What is the capital of France?")
    result = run(environment, *words, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["completions"][0]["text"] == "The capital of France is Paris."


def test_verbs_that_need_more_say_what_to_install(environment, tmp_path):
    for verb in ("export", "distill", "calibrate", "build"):
        result = run(environment, "-m", "piston.cli.main", verb, "x", "-o", "y", cwd=tmp_path)
        assert (result.returncode, f"piston[{verb}]" in result.stderr, result.stderr.count("\n")) == (1, True, 1)
