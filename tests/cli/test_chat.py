import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_model import USER, ids_of, replying, write_bundle

from piston.cli import chat as chat_cli

SHORT = ("--max-tokens", "16", "--quiet")
DRIVER = Path(__file__).parents[1] / "support" / "scripted_piston.py"


def counting(history):
    """The answer is the number of the user's messages so far."""
    return replying(str(history.count(USER)))(history)


def interrupted_at(call, then="hello, world"):
    calls, reply = itertools.count(), replying(then)

    def script(history):
        if next(calls) == call:
            raise KeyboardInterrupt
        return reply(history)

    return script


def test_each_line_gets_an_answer_in_one_conversation(piston, bundle):
    result = piston("chat", bundle, *SHORT, stdin="a\nb\nc\n", script=counting)
    assert (result.status, result.out, result.err) == (0, "1\n2\n3\n", "")


def test_the_end_of_input_leaves(piston, bundle):
    result = piston("chat", bundle, *SHORT, stdin="")
    assert (result.status, result.out) == (0, "")


def test_exit_leaves_at_once(piston, bundle):
    assert piston("chat", bundle, *SHORT, stdin="a\n/exit\nb\n", script=counting).out == "1\n"


def test_reset_begins_anew(piston, bundle):
    assert piston("chat", bundle, *SHORT, stdin="a\nb\n/reset\nc\n", script=counting).out == "1\n2\n1\n"


def test_reset_keeps_the_system_message(piston, bundle):
    begin = tuple(ids_of("<system>brief<end>"))

    def script(history):
        return replying("yes" if history[: len(begin)] == begin else "no")(history)

    assert (
        piston("chat", bundle, "--system", "brief", *SHORT, stdin="a\n/reset\nb\n", script=script).out == "yes\nyes\n"
    )


def test_help_is_no_message(piston, bundle):
    result = piston("chat", bundle, *SHORT, stdin="/help\na\n", script=counting)
    assert result.out == "1\n"
    assert "/reset" in result.err


def test_an_empty_line_is_no_message(piston, bundle):
    assert piston("chat", bundle, *SHORT, stdin="\n  \na\n", script=counting).out == "1\n"


def test_an_error_in_a_turn_does_not_end_the_program(piston, bundle):
    result = piston("chat", bundle, *SHORT, stdin="a\n" + "x" * 100 + "\nb\n", script=counting)
    assert (result.status, result.out) == (0, "1\n2\n")
    assert result.err.startswith("error: The prompt has ")
    assert result.err.count("\n") == 1


def test_a_template_that_refuses_does_not_end_the_program(piston, tmp_path):
    template = "{{ raise_exception('not that') if 'bad' in messages[-1].content }}<user>{{ messages[-1].content }}<bot>"
    write_bundle(tmp_path, template=template)
    result = piston("chat", tmp_path, *SHORT, stdin="bad\ngood\n", script=counting)
    assert (result.status, result.out) == (0, "1\n")
    assert "not that" in result.err


def test_a_line_that_is_not_utf8_ends_in_one_line_of_error(piston, bundle):
    result = piston("chat", bundle, *SHORT, stdin=b"a\n\xff\xff\n", script=counting)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("call", [0, 7, 9])  # during the prefill, and behind some tokens
def test_an_interrupt_stops_the_answer_and_not_the_program(piston, bundle, call):
    result = piston("chat", bundle, *SHORT, stdin="a\nb\n", script=interrupted_at(call))
    assert result.status == 0
    assert result.out.endswith("\nhello, world\n")
    assert result.err == "[stopped]\n"


def test_an_interrupt_while_text_is_printed_keeps_what_was_said(piston, bundle, monkeypatch):
    shown = []

    def print_text(text, end="\n"):
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat_cli, "print_text", print_text)
    result = piston("chat", bundle, "--max-tokens", "16", stdin="a\n", script=replying("hello, world"))
    assert result.status == 0
    assert result.err.startswith("[stopped]\n[4 tokens in, ")
    assert "; 3 out, " in result.err
    assert "ended by an interrupt]" in result.err


def test_an_interrupt_is_followed_by_no_speed_of_an_earlier_answer(piston, bundle):
    first = len(ids_of("<user>a<end><bot>")) + len(ids_of("hello, world")) + 1
    result = piston("chat", bundle, "--max-tokens", "16", stdin="a\nb\n", script=interrupted_at(first))
    assert result.err.count("tokens/s") == 1
    assert result.err.endswith("[stopped]\n")


def test_the_speed_of_each_answer_is_a_line_on_stderr(piston, bundle):
    result = piston("chat", bundle, "--max-tokens", "16", stdin="a\nb\n", script=counting)
    assert result.err.count("tokens/s") == result.err.count("\n") == 2


def test_wrong_options_are_told_before_the_first_line(refused, bundle):
    assert refused("chat", bundle, "--max-tokens", "0")[0] == 2
    status, message = refused("chat", bundle, "--stop-token-id", "99999999")
    assert status == 2
    assert "stop_token_ids names token 99999999" in message


def test_a_batch_of_no_rows_is_misuse(refused, bundle):
    status, message = refused("chat", bundle, "--max-batch", "0")
    assert status == 2
    assert "max_batch is 0" in message


@pytest.mark.parametrize("options", [["--echo"], ["--logprobs"], ["-n", "2", "--temperature", "1"]])
def test_options_without_meaning_in_a_chat_are_misuse(refused, bundle, options):
    assert refused("chat", bundle, *options)[0] == 2


def test_sigint_stops_the_answer_and_the_next_line_is_answered(bundle):
    pytest.importorskip("onnxruntime")
    words = [sys.executable, DRIVER, "word " * 20, "0.02", "chat", bundle, "--max-tokens", "70", "--quiet"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        try:
            chat.stdin.write(b"a\n")
            chat.stdin.flush()
            assert chat.stdout.read(1) == b"w"  # the answer has begun
            time.sleep(0.05)
            chat.send_signal(signal.SIGINT)
            assert chat.stderr.readline() == b"[stopped]\n"
            chat.stdin.write(b"/exit\n")
            out, err = chat.communicate(timeout=20)
        finally:
            chat.kill()
    assert (chat.returncode, err) == (0, b"")
    assert len(out) < 50
