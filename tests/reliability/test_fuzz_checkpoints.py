"""Damaged checkpoints: each answers as transformers does, or is refused in one clear line that names the damage.

A thousand random ones are a slow test. Those that once were failures, or were taken for refusals, are replayed here.
"""

import functools
import importlib.util
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fuzz_kinds
import pytest

from piston.cli.main import main
from piston.core.errors import MisuseError

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


@pytest.mark.parametrize(
    ("message", "done", "is_named"),
    [
        ("num_beams is 0; it must be at least 1.", ["generation_config.json: num_beams = 0"], True),
        ("num_beams is 0; it must be at least 1.", ["generation_config.json: .num_beams = 0"], True),
        ("num_beams is 0; it must be at least 1.", ["generation_config.json: length_penalty = 'x'"], False),
        ("num_beams is 0; it must be at least 1.", ["config.json: d_model = 1", "g.json: num_beams = 0"], True),
        ("Text 0 has 9 tokens; the engine reads up to 8.", ["config.json: max_position_embeddings = 8"], True),
        ("Text 0 has 9 tokens; the engine reads up to 8.", ["config.json: d_model = 8"], False),
        ("The model does not know the language 'en'.", ["generation_config.json: .lang_to_id.<|en|> deleted"], True),
        ("The model does not know the language 'en'.", ["generation_config.json: .task_to_id deleted"], False),
        ("the bytes are wrong", ["tokenizer.json: bytes [3] changed"], False),
        ("absent", ["tokenizer.json: absent"], False),
    ],
)
def test_an_error_counts_as_a_refusal_where_it_names_what_was_damaged(message, done, is_named):
    assert fuzz_kinds.names_damage(message, done) == is_named


def test_an_error_of_a_comparison_that_names_no_damage_is_a_failure(monkeypatch, tmp_path):
    def fails(_given, _model):
        raise MisuseError("Text 0 has 9 tokens; the engine reads up to 8.")

    monkeypatch.setattr("piston.evaluation.opening.open_model_directory", lambda _: io.BytesIO())
    monkeypatch.setitem(fuzz_kinds._COMPARE, "a-task", fails)
    manifest = SimpleNamespace(task="a-task", model=SimpleNamespace(dtype="float32"))
    compared = functools.partial(fuzz_kinds.compare, tmp_path, tmp_path, manifest, "")
    assert compared(["config.json: max_position_embeddings = 8"]) == fuzz_kinds.TOLD
    with pytest.raises(MisuseError):
        compared(["config.json: d_model = 8"])


@pytest.mark.parametrize(
    ("toy", "damage", "outcome"),
    [
        ("translations", ("config.json", "max_position_embeddings", 8), fuzz_kinds.TOLD),
        ("speech", ("generation_config.json", "num_beams", 3), fuzz_kinds.TOLD),
        ("labels", ("tokenizer_config.json", "model_max_length", 3), fuzz_kinds.EQUAL),
    ],
)
def test_a_damage_that_was_found_ends_as_it_should(fuzz, tmp_path, capsys, toy, damage, outcome):
    (file, key, value), given, out = damage, tmp_path / "checkpoint", tmp_path / "out"
    fuzz._write_toy(toy, given)
    path = given / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert main(["export", str(given), "-o", str(out)]) == 0
    said = "".join(capsys.readouterr())
    assert fuzz._compare(given, out, said, [f"{file}: {key} = {value!r}"]) == outcome


@pytest.mark.slow
def test_damaged_checkpoints_end_in_transformers_answer_or_in_one_clear_line(tmp_path):
    found = tmp_path / "found.jsonl"
    subprocess.run([sys.executable, str(SCRIPT), "--count", "1000", "--log", str(found)], check=False)
    outcomes = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    assert len(outcomes) == 1000
    assert [outcome for outcome in outcomes if outcome["failed"]] == []
