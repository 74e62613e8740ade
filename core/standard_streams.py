"""Standard input, output and error of the command, including streams that the caller closed."""

import contextlib
import io
import os
import sys
from typing import TextIO

from piston.core.errors import Error


class OutputError(OSError):
    """A result could not be written to standard output."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(problem.errno, f"Cannot write standard output: {problem.strerror or problem}.")

    def __str__(self) -> str:
        return str(self.strerror)


def open_streams() -> None:
    """Open the standard streams that were closed before Python began.

    Otherwise the next opened file would get the number of a closed stream, and libraries would print into that file.
    Reading a closed input fails; remarks for a closed error stream are dropped.

    Raises:
        Error: standard output was closed, so no result could be printed.
    """
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    if stdin is None:
        sys.stdin = _opened(0, os.O_WRONLY, "r")
    if stdout is None:
        sys.stdout = _opened(1, os.O_WRONLY, "w")
    if stderr is None:
        sys.stderr = _opened(2, os.O_WRONLY, "w")
    if stdout is None:
        raise Error("Standard output is closed; redirect it to a file, or to /dev/null.")


def silence(stream: TextIO) -> None:
    """Discard what is written to a stream from now on, and what it buffers: Python flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed, or has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _opened(number: int, flags: int, mode: str) -> TextIO:
    """Open the null device as descriptor `number`, if that is free."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, flags)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
    raw = open(number, f"{mode}b", closefd=False)  # noqa: SIM115 - the caller keeps it
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace")
