"""A thousand damaged checkpoints: each answers as transformers does, or is refused in one clear line."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/fuzz_checkpoints.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_checkpoints", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [
        (1, "  loading: 1.0 s\nerror: a.json lacks x.\n", "refused"),
        (2, "error: --context 0 must be at least 1.\n", "refused"),
        (1, "", "NO CLEAR LINE"),
        (1, "error: one\nerror: two\n", "NO CLEAR LINE"),
        (99, "Traceback (most recent call last):\n", "TRACEBACK"),
        (1, "error: you tried to allocate 256 bytes\n", "MEMORY"),
        (-signal.SIGXCPU, "", "HANG"),
        (-signal.SIGSEGV, "", "CRASH"),
        (0, "", "NOTHING WRITTEN"),
    ],
)
def test_an_end_that_is_no_answer_and_no_clear_line_is_a_failure(fuzz, tmp_path, status, said, outcome):
    found = fuzz._judged(fuzz.Ended(status, 1.0, said), tmp_path / "out")
    assert found == outcome


@pytest.mark.slow
def test_damaged_checkpoints_end_in_transformers_answer_or_in_one_clear_line(tmp_path):
    found = tmp_path / "found.jsonl"
    subprocess.run([sys.executable, str(SCRIPT), "--count", "1000", "--log", str(found)], check=False)
    outcomes = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    assert len(outcomes) == 1000
    assert [outcome for outcome in outcomes if outcome["failed"]] == []
