"""No option that names an output file may name what the command reads, for any command."""

import argparse
import importlib
from pathlib import Path

import pytest

from piston.cli.main import VERBS, main

# verb: options that name a file to write, and those that name what is read
FILES = {
    "calibrate": ({"--save-recipe", "--report"}, {"--check-data", "--data", "--labelled", "--recipe"}),
    "distill": ({"--report"}, {"--student", "--start"}),
    "build": ({"--timing-cache"}, set()),
    "eval": ({"--html"}, {"--data", "--reference", "--prompts"}),
    "diff": ({"--html"}, {"--data"}),
    "explain": ({"--output"}, {"--reference"}),
    "bench": ({"--html", "--junit", "--markdown"}, {"--prompts", "--rivals", "--baseline"}),
    "serve": (set(), {"--public-key", "--api-key-file"}),
    "run": (set(), {"--prompt-file", "--public-key"}),
    "chat": (set(), {"--public-key"}),
    "verify": (set(), {"--public-key", "--signature"}),
}
# Directories that a command writes; what they may replace is tested with each command.
WRITTEN = {
    "export": {"--output"},
    "calibrate": {"--output"},
    "distill": {"--output"},
    "build": {"--output", "--cache-dir"},
    "make": {"--cache-dir", "--report"},
}
# Command lines; a word in capitals is a file or directory that is read, ! stands for the options of output files.
LINES = {
    "calibrate": "calibrate MODEL -o OUT --scheme w8a8 --data TEXT --check-data OTHER --labelled MORE !",
    "calibrate, a recipe": "calibrate MODEL -o OUT --recipe TEXT !",
    "distill": "distill CHECKPOINT -o OUT --data TEXT --student OTHER --steps 1 !",
    "distill, a start": "distill CHECKPOINT -o OUT --data TEXT --start MODEL --steps 1 !",
    "eval": "eval BUNDLE --data TEXT --reference MODEL --prompts OTHER !",
    "eval, an encoder": "eval ENCODER --data TEXT --reference BUNDLE !",
    "diff": "diff BUNDLE MODEL --data TEXT !",
    "explain": "explain BUNDLE --prompt a --reference ENCODER !",
    "bench": "bench BUNDLE --baseline TEXT --rivals OTHER --require tpot<=105% --against piston:ENCODER !",
    "bench, an encoder": "bench ENCODER --prompts TEXT !",
    "bench, recipes": "bench TEXT.toml --checkpoint CHECKPOINT --require export.seconds<=105% --baseline OTHER !",
    "bench --serve": "bench --serve BUNDLE --prompts TEXT --require ttft<=1s --against piston:ENCODER !",
    "run": "run MODULE --input TEXT --public-key OTHER !",
}


def options_of(verb):
    """Options that take a path."""
    parser = argparse.ArgumentParser()
    parser.words = []
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    return {action.option_strings[-1] for action in parser._actions if action.type is Path and action.option_strings}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_that_takes_a_path_is_known_to_read_or_to_write(verb):
    pytest.importorskip("torch")
    writes, reads = FILES.get(verb, (set(), set()))
    assert options_of(verb) == writes | reads | WRITTEN.get(verb, set())


@pytest.mark.parametrize("line", LINES)
def test_no_output_replaces_what_is_read(places, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(places)
    words = LINES[line].split()
    verb = words[0]
    outputs = {"--output"} if verb == "run" else FILES[verb][0]
    read = {word.rpartition(":")[2] for word in words if (places / word.rpartition(":")[2]).exists()}
    given = [str(tmp_path / "out") if word == "OUT" else word for word in words if word != "!"]
    for option in sorted(outputs):
        for name in sorted(read):
            path = next(
                (Path(name) / held for held in ("manifest.json", "config.json") if Path(name, held).exists()),
                Path(name),
            )
            before = path.read_bytes()
            status = main([*given, option, str(path)])
            said = capsys.readouterr().err
            assert (status, said.count("\n")) == (2, 1), (option, name, said)
            assert "would replace" in said or f"{option} is for language models" in said, (option, name, said)
            assert path.read_bytes() == before
