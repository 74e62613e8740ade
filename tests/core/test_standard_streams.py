"""The command under every state of its streams that a shell can make: closed, full, or a reader who has left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_piston import script_engines
from toy_model import replying

from piston.cli.main import main

SUPPORT = Path(__file__).parents[1] / "support"
FULL = "error: Cannot write standard output: No space left on device.\n"
ANSWER = ("run", "BUNDLE", "--chat", "--prompt", "hi", "--max-tokens", "60")


@pytest.fixture
def shell(bundle):
    """Run `piston WORDS REDIRECTIONS` as a shell does; its engine says "hello you"."""

    def run(words, redirections):
        command = [sys.executable, str(SUPPORT / "scripted_piston.py"), "hello you", "0", *words]
        quoted = " ".join(f"'{word}'" for word in command).replace("BUNDLE", str(bundle))
        return subprocess.run(
            ["/bin/sh", "-c", f"{quoted} {redirections}"],
            env=os.environ | {"PYTHONPATH": str(SUPPORT), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def full(monkeypatch):
    """stdout or stderr is a device without room."""

    def fill(name):
        stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - silenced, then closed by the garbage collector
        monkeypatch.setattr(f"sys.{name}", stream)
        return stream

    return fill


@pytest.mark.parametrize(
    "words",
    [
        ANSWER,
        (*ANSWER, "--json"),
        ("inspect", "BUNDLE"),
        ("inspect", "BUNDLE", "--json"),
        ("bench", "--help"),
        ("--version",),
    ],
)
def test_a_result_that_does_not_fit_is_one_line_of_error(bundle, full, capsys, monkeypatch, words):
    script_engines(replying("hello you"), monkeypatch.setattr)
    stream = full("stdout")
    assert main([word.replace("BUNDLE", str(bundle)) for word in words]) == 1
    err = capsys.readouterr().err
    assert err == FULL
    stream.close()  # what the interpreter does at the end: nothing is left that could fail


def test_remarks_that_do_not_fit_are_dropped_and_the_result_is_whole(bundle, full, capsys, monkeypatch):
    script_engines(replying("hello you"), monkeypatch.setattr)
    stream = full("stderr")
    assert main([word.replace("BUNDLE", str(bundle)) for word in ANSWER]) == 0
    assert capsys.readouterr().out == "hello you\n"
    stream.close()


def test_a_closed_stdout_is_refused_before_the_work(bundle, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["inspect", str(bundle / "nowhere")]) == 1
    err = capsys.readouterr().err
    assert err == "error: Standard output is closed; redirect it to a file, or to /dev/null.\n"


def test_with_stderr_closed_stdout_has_the_result_alone(shell):
    result = shell(ANSWER, "2>&-")
    assert (result.returncode, result.stdout, result.stderr) == (0, "hello you\n", "")


def test_with_all_streams_closed_the_status_is_right_and_no_descriptor_is_given_to_a_file(shell):
    assert shell(ANSWER, ">&- 2>&- <&-").returncode == 1
    assert shell(ANSWER, ">/dev/null 2>&- <&-").returncode == 0


@pytest.mark.parametrize("words", [("run", "BUNDLE", "--prompt", "-"), ("chat", "BUNDLE")])
def test_a_closed_stdin_that_is_read_is_one_line_of_error(shell, words):
    result = shell(words, "<&-")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: Cannot read standard input: Bad file descriptor.\n"


def test_the_interpreter_adds_nothing_to_a_full_stdout(shell):
    result = shell(("inspect", "BUNDLE", "--json"), ">/dev/full")
    assert (result.returncode, result.stderr) == (1, FULL)


def test_an_argument_that_is_not_utf8_is_named_before_the_work(bundle, capsys):
    word = os.fsdecode(b"\xff")
    assert main(["run", str(bundle), "--prompt", f"a{word}"]) == 2
    assert capsys.readouterr().err == (
        "error: The argument 'a\\xff' is not UTF-8; rename the file, or convert the text.\n"
    )
