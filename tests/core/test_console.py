import contextlib
import io
import json
import math

import pytest

from piston.core.console import Progress, is_coloured, note, print_json, print_text
from piston.core.errors import MisuseError


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("variables", "on_terminal", "on_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),  # no-color.org: present and not empty
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colour_is_for_terminals_unless_the_environment_says_otherwise(monkeypatch, variables, on_terminal, on_pipe):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (is_coloured(Terminal()), is_coloured(io.StringIO())) == (on_terminal, on_pipe)


def test_results_go_to_stdout_and_remarks_to_stderr(capsys):
    print_text("result")
    note("remark")
    assert capsys.readouterr() == ("result\n", "remark\n")


def test_json_on_stdout_has_no_nan(capsys):
    print_json({"error": float("inf")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"error": "Infinity"}


def test_json_keeps_characters_readable(capsys):
    print_json({"text": "é👍"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": "é👍"}
    assert "é👍" in out


def shown_in_ascii(show, value):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        show(value)
    stream.flush()
    return stream.buffer.getvalue()


def test_text_that_stdout_cannot_show_becomes_question_marks():
    assert shown_in_ascii(print_text, "né 👍") == b"n? ?\n"


def test_json_that_stdout_cannot_show_is_escaped():
    assert json.loads(shown_in_ascii(print_json, {"text": "né 👍"})) == {"text": "né 👍"}


def test_a_phase_tells_its_seconds():
    stream = io.StringIO()
    with Progress(stream=stream).phase("loading"):
        pass
    assert stream.getvalue() == "  loading: 0.0 s\n"


def test_a_phase_that_fails_says_so_and_lets_the_error_through():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream).phase("loading"):
        raise KeyboardInterrupt
    assert stream.getvalue() == "  loading: stopped\n"


def test_quiet_writes_nothing():
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    with progress.phase("loading"):
        progress.step("loading", 1, 2)
    assert stream.getvalue() == ""


def test_a_pipe_gets_no_bar_and_no_control_characters():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with progress.phase("loading"):
        progress.step("loading", 1, 2)
    assert stream.getvalue() == "  loading: 0.0 s\n"


@pytest.mark.parametrize(("done", "total", "bar"), [(0, 4, " " * 24), (2, 4, "=" * 12 + " " * 12), (4, 4, "=" * 24)])
def test_a_terminal_gets_a_bar(done, total, bar):
    stream = Terminal()
    Progress(stream=stream).step("loading", done, total)
    assert stream.getvalue() == f"\r\x1b[K  loading [{bar}] {done}/{total}"


def test_a_bar_of_nothing_does_not_divide_by_zero():
    Progress(stream=Terminal()).step("loading", 0, 0)


@pytest.mark.parametrize(("seconds", "left"), [(2.0, ", 0:06 left"), (40.0, ", 2:00 left")])
def test_a_bar_tells_the_time_left_at_the_pace_since_the_first_step(monkeypatch, seconds, left):
    stream, now = Terminal(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(stream=stream)
    with progress.phase("loading"):
        progress.step("loading", 0, 4)
        now[0] = seconds
        progress.step("loading", 1, 4)
    assert f" 1/4{left}\r" in stream.getvalue()


def test_a_second_bar_of_a_phase_has_a_pace_of_its_own(monkeypatch):
    stream, now = Terminal(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(stream=stream)
    with progress.phase("ranking"):
        progress.step("layers", 0, 4)
        now[0] = 100.0
        progress.step("activations", 0, 4)
        now[0] = 102.0
        progress.step("activations", 1, 4)
    assert " 1/4, 0:06 left\r" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "left"), [(65.0, ", 1:05 left"), (math.inf, "")])
def test_a_bar_tells_the_time_left_that_it_is_given(seconds, left):
    stream = Terminal()
    Progress(stream=stream).step("training", 1, 4, seconds)
    assert stream.getvalue().endswith(f"] 1/4{left}")


@pytest.fixture
def as_json(monkeypatch):
    monkeypatch.setenv("PISTON_LOG_FORMAT", "json")


@pytest.mark.usefixtures("as_json")
def test_json_logs_say_when_how_grave_and_what(capsys):
    note("line one\nline two", "error")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("error", "line one\nline two")
    assert entry["time"].endswith("+00:00")


@pytest.mark.usefixtures("as_json")
def test_json_progress_has_no_bars_and_a_line_for_each_phase():
    stream = Terminal()
    progress = Progress(stream=stream)
    with contextlib.suppress(ValueError), progress.phase("a"):
        progress.step("a", 1, 2)
        raise ValueError
    with progress.phase("b"):
        pass
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(entry["phase"], entry["stopped"]) for entry in entries] == [("a", True), ("b", False)]
    assert all(entry["seconds"] >= 0 for entry in entries)


def test_a_log_format_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("PISTON_LOG_FORMAT", "xml")
    with pytest.raises(MisuseError, match="xml"):
        note("hello")
