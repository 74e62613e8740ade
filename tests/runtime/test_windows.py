"""A Python without the modules and functions that Windows lacks: bundles are loaded and run there, not written."""

import json

import pytest
from toy_model import write_bundle
from windows import on_windows

from piston.cli.main import main
from piston.core.bundle.manifest import EngineSpec
from piston.runtime import SamplingParams, load

pytest.importorskip("onnxruntime")

LOAD = """
import json
from piston.runtime import SamplingParams, load
with load(sys.argv[1]) as model:
    answers = model.generate([[5, 6, 7], [8]], SamplingParams(max_tokens=5, ignore_eos=True))
print(json.dumps([item.token_ids for item in answers]))
"""
COMMAND = """
from piston.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def bundle(tmp_path, toy_llama):
    (tmp_path / "ort-cpu").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "ort-cpu" / name).write_bytes(toy_llama.path.with_name(name).read_bytes())
    engine = EngineSpec.of(
        target="ort-cpu", path="ort-cpu/model.onnx", cache=toy_llama.spec, requested={"max_batch": 2}, actual={}
    )
    write_bundle(tmp_path, engines=(engine,))
    return tmp_path


def test_a_bundle_is_loaded_and_answers_as_it_does_here(bundle):
    found = on_windows(LOAD, bundle)
    assert found.stderr == ""
    with load(bundle) as model:
        expected = model.generate([[5, 6, 7], [8]], SamplingParams(max_tokens=5, ignore_eos=True))
    assert json.loads(found.stdout) == [list(item.token_ids) for item in expected]


@pytest.mark.parametrize(
    "words", [["run", "--prompt", "a", "--max-tokens", "3"], ["inspect"], ["plan", "--memory", "1GB"]]
)
def test_commands_that_read_a_bundle_work(bundle, words):
    found = on_windows(COMMAND, words[0], bundle, *words[1:])
    assert (found.returncode, "Traceback" in found.stderr) == (0, False)


def test_what_writes_a_directory_says_in_one_line_where_it_can_be_run(tmp_path):
    pytest.importorskip("onnx_ir")
    found = on_windows(COMMAND, "build", tmp_path, "-o", tmp_path / "out")
    assert found.returncode == 1
    assert found.stderr.startswith("error: Models and bundles are written on Linux and macOS alone")
    assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_says_in_one_line_where_it_can_be_run(bundle, monkeypatch, capsys):
    pytest.importorskip("starlette")
    monkeypatch.setattr("sys.platform", "win32")
    assert main(["serve", str(bundle)]) == 1
    assert capsys.readouterr().err == (
        "error: `piston serve` runs on Linux and macOS alone; fix: serve from a container, or in WSL.\n"
    )
