import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from piston.pipeline import cache_key

ROOT = Path(__file__).parents[2]
IMPORTED = re.compile(r"\b(?:from|import) (piston\.\w+)")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The digest of a verb whose packages lie in a directory of the test's."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path])
    )
    (tmp_path / "stage.py").write_text("x = 1")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/prose.txt").write_text("once")
    return lambda: cache_key.code_of.__wrapped__("calibrate")


@pytest.mark.parametrize("name", ["stage.py", "texts/prose.txt", "kernel.cpp"])
def test_code_is_all_that_a_package_brings_data_and_kernels_too(code, tmp_path, name):
    before = code()
    (tmp_path / name).write_text("other")
    assert code() != before


@pytest.mark.parametrize("name", ["stage.cpython-311.pyc", "libkernels.so"])
def test_what_is_compiled_is_no_input_of_a_stage(code, tmp_path, name):
    before = code()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("other")
    assert code() == before


def test_how_pages_look_is_an_input_of_the_stage_that_keeps_one_alone(tmp_path, monkeypatch):
    places = {"piston.core": tmp_path, "piston.core.report": tmp_path / "report"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[places.get(name, tmp_path / "none")]),
    )
    (tmp_path / "report").mkdir()
    verbs = ("export", "calibrate", "build", "verify", "eval")
    before = {verb: cache_key.code_of.__wrapped__(verb) for verb in verbs}
    (tmp_path / "report/style.css").write_text("body{}")
    assert [verb for verb in verbs if cache_key.code_of.__wrapped__(verb) != before[verb]] == ["eval"]


@pytest.mark.parametrize("verb", cache_key.PACKAGES)
def test_every_package_that_a_stage_imports_is_an_input_of_it(verb):
    packages = {name for name in cache_key.PACKAGES[verb] if name.count(".") == 1}
    sources = [path for name in packages for path in (ROOT / name.removeprefix("piston.")).rglob("*.py")]
    imported = {name for path in sources for name in IMPORTED.findall(path.read_text(encoding="utf-8"))}
    assert sources
    assert imported == packages


@pytest.mark.parametrize("verb", ["export", "calibrate", "build", "verify", "eval"])
def test_benchmarks_commands_and_the_pipeline_are_no_input_of_a_stage(verb):
    assert {"piston.bench", "piston.cli", "piston.pipeline"}.isdisjoint(cache_key.PACKAGES[verb])


def test_a_checkpoint_is_its_files_and_the_modules_of_sentence_transformers(tmp_path):
    for name in ("config.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = cache_key.files_of_checkpoint(tmp_path)
    assert sorted(found) == ["1_Pooling/config.json", "2_Dense/model.safetensors", "config.json"]


def test_a_checkpoint_is_its_files_and_its_named_chat_templates(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("config.json", ".hidden", "additional_chat_templates/rag.jinja", "other/rag.jinja"):
        (tmp_path / name).write_text(name)
    assert list(cache_key.files_of_checkpoint(tmp_path)) == ["additional_chat_templates/rag.jinja", "config.json"]
