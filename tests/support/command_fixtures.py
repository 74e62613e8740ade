"""The command line over a scripted engine; a real toy in ONNX."""

import io
from types import SimpleNamespace

import pytest
from scripted_piston import script_engines
from toy_model import replying, write_bundle

from piston.cli.main import main


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("PISTON_LOG_FORMAT", "")  # and whatever a test sets is undone


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def real_piston(monkeypatch, capsys):
    """Run a command line in this process, on the engines of bundles; gives its exit status, stdout and stderr."""

    def run(*words, stdin=""):
        text = io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode()), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", text)
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as leaving:  # argparse: --help and --version
            status = leaving.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


@pytest.fixture
def piston(monkeypatch, real_piston):
    """The same on scripted engines of language models."""

    def run(*words, script=None, stdin=""):
        script_engines(script or replying("hello you"), monkeypatch.setattr)
        return real_piston(*words, stdin=stdin)

    return run


@pytest.fixture
def refused(piston):
    """Run a command line that must end in one line of error; gives its status and message."""

    def run(*words, **options):
        result = piston(*words, **options)
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1
        assert result.err.endswith("\n")
        assert result.out == ""
        return result.status, result.err.removeprefix("error: ").rstrip()

    return run


@pytest.fixture(scope="session")
def toy_llama(toy):
    """A real two-layer Llama as a canonical graph, seeded: path, cache, and the module it came from."""
    from zoo import make

    made = toy("llama")
    return SimpleNamespace(path=made.path, spec=made.cache, vocab_size=131, make=lambda: make("llama"))
