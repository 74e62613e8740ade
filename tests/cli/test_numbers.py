"""Numbers that mean nothing are refused in one line, for every option of every command that takes a number."""

import argparse
import importlib

import pytest

from piston.cli.main import VERBS, main

# In the directory of the fixture `places`; OUT is written by none of them.
LINES = {
    "export": "export CHECKPOINT -o OUT",
    "calibrate": "calibrate MODEL -o OUT --scheme w8a8 --data TEXT",
    "distill": "distill CHECKPOINT -o OUT --data TEXT --steps 1 --prune sparsity=2:4",
    "build": "build MODEL -o OUT",
    "run": "run BUNDLE --prompt a",
    "run, labels": "run ENCODER --text hello",
    "run, tags": "run TAGGER --text hello",
    "run, answers": "run ANSWERER --question who --context hello",
    "run, ranks": "run RERANKER --query who --document hello",
    "run, vectors": "run EMBEDDER --text girl",
    "run, texts": "run TRANSLATOR --text sea",
    "run, speech": "run SPEECH --audio SOUND.wav",
    "run, a module": "run MODULE --input ARRAYS.npz",
    "chat": "chat BUNDLE",
    "serve": "serve BUNDLE",
    "serve, vectors": "serve EMBEDDER",
    "eval": "eval BUNDLE --data TEXT",
    "eval, labels": "eval ENCODER --data TEXT --reference ENCODER",
    "diff": "diff BUNDLE BUNDLE --data TEXT",
    "diff, vectors": "diff EMBEDDER EMBEDDER --data TEXT",
    "explain": "explain BUNDLE --prompt a",
    "bench": "bench BUNDLE",
    "bench, labels": "bench ENCODER",
    "bench, a module": "bench MODULE",
    "bench --serve": "bench --serve BUNDLE",
    "verify": "verify BUNDLE",
    "plan": "plan BUNDLE --memory 1GB",
}
HUGE = "9" * 40
# Values that mean something. As large as it likes may be what counts from the front, repeats, or is drawn from.
MEANT = {
    "--top-k": {"-1", HUGE},
    "--presence-penalty": {"-1"},
    "--frequency-penalty": {"-1"},
    "--logit-bias": {"-1"},
    **dict.fromkeys(("--seed", "--steps", "--repeats", "--warmup", "--starts", "--requests"), frozenset({HUGE})),
    **dict.fromkeys(("--top-n", "--top", "--limit", "--max-records", "--keep-worst"), frozenset({HUGE})),
    **dict.fromkeys(("--no-repeat-ngram-size", "--max-answer-len", "--stride"), frozenset({HUGE})),
    **dict.fromkeys(("--max-queue-requests", "--max-queue-tokens"), frozenset({HUGE})),
    # Of a text, and of answers that nobody asks for without a reference.
    ("eval", "--max-tokens"): {HUGE},
    ("eval", "--answer-tokens"): {HUGE},
    ("plan", "--batch"): {HUGE},  # does not fit
    ("distill", "--seed"): set(),
    ("eval", "--stride"): set(),
}
SERVED = ("--max-length", "--max-batch", "--threads")  # of serve, which reads NAME=N


def numbers_of(words):
    """Options of a command that take a number, and its type."""
    parser = argparse.ArgumentParser()
    parser.words = words[1:]
    importlib.import_module(VERBS[words[0]][0]).add_arguments(parser)
    for action in parser._actions:
        option = next((text for text in action.option_strings if text.startswith("--")), None)
        if option is not None and (action.type in {int, float} or option in SERVED):
            yield option, action.type or int


@pytest.mark.parametrize("line", LINES)
def test_a_number_that_means_nothing_is_refused_in_one_line(places, line, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(places)
    words = [str(tmp_path / "out") if word == "OUT" else word for word in LINES[line].split()]
    verb = words[0]
    wrong = []
    for option, kind in numbers_of(words):
        meant = MEANT.get((verb, option), MEANT.get(option, set()))
        for value in {"-1", HUGE if kind is int else "nan"} - meant:
            status = main([*words, f"{option}={value}"])
            said = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("  ")]  # of progress
            if status != 2 or len(said) != 1 or not said[0].startswith("error: "):
                wrong.append((option, value, status, said))
    assert wrong == []
    assert not (tmp_path / "out").exists()
