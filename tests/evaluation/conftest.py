"""A text file, and a reference beside the candidate, each with its own script."""

import pytest
from evaluated import TEXT
from toy_model import VOCAB_SIZE, write_bundle

from piston.cli.main import main
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.scripted import ScriptedEngine


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def reference(tmp_path):
    write_bundle(tmp_path / "reference")
    return tmp_path / "reference"


@pytest.fixture
def evaluated(monkeypatch, capsys):
    """evaluated(*words, bundle=script, reference=script): exit status, stdout, stderr of `piston eval`."""

    def run(*words, **scripts):
        def opened_at(path, spec, *, num_slots, capacity, options):
            script = scripts[path.parts[-3]]
            return ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=capacity)

        monkeypatch.setattr(OrtEngine, "open", opened_at)
        status = main(["eval", *(str(word) for word in words)])
        return status, *capsys.readouterr()

    return run
