"""Output of commands: results on stdout, progress on stderr, colour only on terminals.

With PISTON_LOG_FORMAT=json (or --log-format json) stderr carries one JSON object a line, for log collectors.
"""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from piston.core.errors import MisuseError
from piston.core.json_text import json_text
from piston.core.standard_streams import OutputError, silence

LOG_FORMAT = "PISTON_LOG_FORMAT"
LOG_FORMATS = ("text", "json")
Level = Literal["info", "error"]


def print_json(value: Any) -> None:
    """Print one object as JSON on stdout, escaped where stdout cannot encode it."""
    text = json_text(value, indent=1, ensure_ascii=False)
    print_text(text if _as_shown(text) == text else json_text(value, indent=1))


def print_text(text: str, end: str = "\n") -> None:
    """Print a result on stdout and flush it; characters that stdout cannot encode become question marks.

    Raises:
        OutputError: the text could not be written.
    """
    try:
        print(_as_shown(text), end=end, flush=True)  # noqa: T201
    except OSError as problem:
        raise OutputError(problem) from problem


@contextmanager
def reading_input() -> Iterator[None]:
    """Turn errors of reading standard input into MisuseError."""
    try:
        yield
    except UnicodeDecodeError as problem:
        raise MisuseError(f"Standard input is not {problem.encoding.upper()} ({problem.reason}).") from None
    except OutputError:
        raise
    except OSError as problem:
        raise MisuseError(f"Cannot read standard input: {problem.strerror or problem}.") from None


def note(text: str, level: Level = "info") -> None:
    """Print a remark on stderr; if stderr cannot be written, the work goes on without it."""
    if logs_json():
        text = log_line(level, message=text)
    _say(sys.stderr, f"{text}\n")


def pass_on(line: str) -> None:
    """Print what another process wrote to its stderr, as it is."""
    _say(sys.stderr, f"{line}\n")


def logs_json() -> bool:
    """Whether stderr carries JSON lines; raises MisuseError if the environment names an unknown format."""
    chosen = os.environ.get(LOG_FORMAT) or "text"
    if chosen not in LOG_FORMATS:
        raise MisuseError(f"{LOG_FORMAT} is {chosen!r}; there are {' and '.join(LOG_FORMATS)}.")
    return chosen == "json"


def log_line(level: Level, **fields: Any) -> str:
    """One JSON object on one line: the time in UTC (ISO 8601), the level, and the message."""
    return json_text({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level} | fields)


def is_coloured(stream: TextIO) -> bool:
    """NO_COLOR forbids, FORCE_COLOR demands, else a terminal decides (no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


class Progress:
    """Phases of a long command: one line each on stderr with its seconds; a bar where the number of steps is known."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._json = logs_json()
        self._live = not quiet and not self._json and self._stream is not None and self._stream.isatty()
        self._first: tuple[str, float, int] | None = None  # the present bar: its name, when it began, and at what

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, and print how long it took when it ends."""
        start, self._first = time.perf_counter(), None
        self._write(f"  {name} ...", live=True)
        try:
            yield
        except BaseException:
            self._end(name, time.perf_counter() - start, stopped=True)
            raise
        self._end(name, time.perf_counter() - start, stopped=False)

    def step(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None:
        """Redraw the bar of the current phase, with the time left: the given one, or an estimate by the pace so far."""
        width = 24
        filled = width * done // max(total, 1)
        left = self._left(name, done, total) if seconds_left is None else time_left(seconds_left)
        self._write(f"  {name} [{'=' * filled}{' ' * (width - filled)}] {done}/{total}{left}", live=True)

    def _end(self, name: str, seconds: float, *, stopped: bool) -> None:
        if self._json:
            self._write(log_line("info", phase=name, seconds=round(seconds, 3), stopped=stopped), live=False)
        elif stopped:
            self._write(self._painted(f"  {name}: stopped", "31"), live=False)
        else:
            self._write(f"  {name}: {seconds:.1f} s", live=False)

    def _left(self, name: str, done: int, total: int) -> str:
        if self._first is None or self._first[0] != name:
            self._first = (name, time.perf_counter(), done)
        _, start, before = self._first
        if not before < done < total:
            return ""
        return time_left((time.perf_counter() - start) / (done - before) * (total - done))

    def _write(self, text: str, *, live: bool) -> None:
        if self._quiet or (live and not self._live):
            return
        start, end = ("\r\x1b[K", "" if live else "\n") if self._live else ("", "\n")
        _say(self._stream, f"{start}{text}{end}")

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if is_coloured(self._stream) else text


def time_left(seconds: float) -> str:
    """Such as ", 1:05 left"; nothing where that is not known: infinite."""
    if math.isinf(seconds):
        return ""
    whole = round(seconds)
    return f", {whole // 60}:{whole % 60:02d} left"


def _say(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before Python began
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        silence(stream)


def _as_shown(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
