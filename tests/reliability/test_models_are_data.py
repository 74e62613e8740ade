"""Model files are data: none is ever unpickled into code, no checkpoint's code is run, and nothing asks the network."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/py.typed"))
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NETWORK = {"http", "httpx", "requests", "socket", "ssl", "urllib.request", "aiohttp", "ftplib"}


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert UNPICKLERS.isdisjoint(name.split(".")[0] for name in imports_of(tree))
    for name, keywords in calls_of(tree):
        assert name not in {"eval", "exec", "compile", "__import__"}
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True"
        if name in {"np.load", "numpy.load"}:
            assert ast.unparse(keywords["allow_pickle"]) == "False"
        if "trust_remote_code" in keywords:
            assert (
                not isinstance(keywords["trust_remote_code"], ast.Constant) or not keywords["trust_remote_code"].value
            )


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_of_the_runtime_imports_a_network_client(path):
    found = set(imports_of(ast.parse(path.read_text(encoding="utf-8"))))
    assert not {name for name in found if name in NETWORK or name.split(".")[0] in NETWORK - {"urllib.request"}}


class Malicious:
    """What it does when it is unpickled without weights_only."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickled_checkpoint_runs_no_code(tmp_path):
    from checkpoints import write_checkpoint

    from piston.core.errors import CheckpointError
    from piston.export import export_model

    checkpoint, mark = tmp_path / "checkpoint", tmp_path / "code-was-run"
    write_checkpoint(checkpoint)
    for path in checkpoint.glob("*.safetensors"):
        path.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious(mark)}))
    with pytest.raises(CheckpointError):
        export_model(checkpoint, tmp_path / "model")
    assert not mark.exists()
    assert not (tmp_path / "model").exists()


def test_code_of_a_checkpoint_is_not_run_unless_asked(tmp_path):
    from checkpoints import write_checkpoint

    from piston.core.errors import CheckpointError
    from piston.export import export_model

    checkpoint, mark = tmp_path / "checkpoint", tmp_path / "code-was-run"
    write_checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(CheckpointError):
        export_model(checkpoint, tmp_path / "model")
    assert not mark.exists()


OFFLINE = """
import socket, sys
def refused(*_, **__):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from piston.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


NATIVE = """
import sys
from piston.cli.main import main
status = main(sys.argv[1:])
assert "onnxruntime" in sys.modules
sys.exit(status)
"""


def test_onnxruntime_keeps_no_telemetry_and_no_id_of_the_machine(made_bundle, tmp_path):
    # What turns its telemetry off anyway, as CI does, would hide that it is on.
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", "GITHUB_ACTIONS", "TF_BUILD")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", NATIVE, "verify", str(made_bundle)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()] == []
    assert "elemetry" not in result.stderr


@pytest.mark.parametrize(
    "words", [("verify",), ("run", "--prompt", "hello", "--max-tokens", "4"), ("inspect",)], ids=lambda words: words[0]
)
def test_a_bundle_runs_without_network(made_bundle, words):
    command = [sys.executable, "-c", OFFLINE, words[0], str(made_bundle), *words[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
