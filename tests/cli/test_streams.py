"""Commands whose standard output is full, or read by nobody any more, end alike whatever they print."""

import os
from pathlib import Path

import pytest

from piston.cli.main import main

LINES = [
    "run BUNDLE --prompt a --max-tokens 2 --quiet",
    "run ENCODER --text hello --json",
    "run TAGGER --text hello",
    "run ANSWERER --question who --context hello",
    "run RERANKER --query who --document hello",
    "run EMBEDDER --text girl",
    "run TRANSLATOR --text sea --max-tokens 2 --quiet",
    "run SPEECH --audio SOUND.wav --language en --quiet",
    "run SPEECH --audio SOUND.wav --language en --format srt --quiet",
    "run MODULE --input ARRAYS.npz",
    "eval ENCODER --data TEXT --reference ENCODER --quiet",
    "diff ENCODER ENCODER --data TEXT --quiet",
    "explain ENCODER --text hello --quiet",
    "bench ENCODER --prompts TEXT --repeats 1 --warmup 0 --quiet",
    "verify ENCODER --quiet",
    "plan BUNDLE --memory 1GB",
    "doctor BUNDLE",
    "inspect SPEECH",
    "sbom BUNDLE",
]


@pytest.mark.parametrize("line", LINES)
def test_a_full_or_broken_stdout_is_one_line_of_error_or_none(places, line, monkeypatch, capsys):
    monkeypatch.chdir(places)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(line.split()) == 1
    assert capsys.readouterr().err == "error: Cannot write standard output: No space left on device.\n"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as left:
        monkeypatch.setattr("sys.stdout", left)
        assert main(line.split()) == 1
    assert capsys.readouterr().err == ""
