"""One `piston` command in a child process that dies with its parent, so memory is freed and a kill ends both."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.console import logs_json, note, pass_on
from piston.core.errors import Error
from piston.runtime.process_memory import peak_memory

GRACE_S = 10.0  # for a child to clean up after SIGTERM
_ERROR = "error: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command printed with --json, how it ended, and what it took."""

    status: int
    result: dict[str, Any]
    seconds: float
    peak_bytes: int  # as the child reports it: the parent's figure for a child includes the parent's memory
    error: str  # the last error line of stderr


Runner = Callable[[Sequence[str], Path, bool], Outcome]


def run_verb(
    words: Sequence[str],
    directory: Path,
    quiet: bool,  # noqa: FBT001 - a Runner
    python: str = sys.executable,
) -> Outcome:
    """Run `piston WORDS --json` of `python` in `directory`; its progress goes to our stderr unless quiet.

    Raises:
        Error: it was killed, or succeeded without printing JSON.
    """
    module = [python, "-m", "piston.pipeline.child", str(os.getpid())]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as peak:
        command = [*module, str(peak.fileno()), words[0], "--json", *words[1:]]
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=directory,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=[peak.fileno()],
            env=os.environ | {"NO_COLOR": "1"},  # the child's lines are parsed, so they must not be coloured
        )
        try:
            error = _relay(process, quiet=quiet)
            process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            assert process.stderr is not None
            process.stderr.close()
        stdout.seek(0)
        printed = stdout.read()
        peak.seek(0)
        peak_bytes = int(peak.read() or 0)
    return Outcome(
        status=process.returncode,
        result=_parsed(printed, words, process.returncode, error),
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes,
        error=error,
    )


def _relay(process: subprocess.Popen[bytes], *, quiet: bool) -> str:
    """Forward the child's progress as text or as JSON lines; return its last error line."""
    error, is_json = "", logs_json()
    assert process.stderr is not None
    for raw in process.stderr:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        said = _error_in(line, is_json=is_json)
        if said is not None:
            error = said
        elif not quiet and is_json and _record(line) is not None:
            pass_on(line)
        elif not quiet:
            note(f"  {line}")
    return error


def _error_in(line: str, *, is_json: bool) -> str | None:
    if line.startswith(_ERROR):
        return line.removeprefix(_ERROR)
    record = _record(line) if is_json else None
    return str(record.get("message")) if record is not None and record.get("level") == "error" else None


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _parsed(printed: bytes, words: Sequence[str], status: int, error: str) -> dict[str, Any]:
    if status < 0:
        raise Error(f"`piston {words[0]}` was killed by signal {-status}; if it was out of memory, give it more.")
    try:
        result = json.loads(printed)
    except ValueError:
        result = None
    if isinstance(result, dict):
        return result
    if status == 0:
        raise Error(f"`piston {words[0]}` printed no JSON object; run it alone to see why.")
    raise Error(f"`piston {words[0]}` failed: {error or f'exit status {status}'}")


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; on other systems the command runs to its end."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from piston.cli.main import main

    _die_with_parent(int(sys.argv[1]))
    try:
        sys.exit(main(sys.argv[3:]))
    finally:
        os.write(int(sys.argv[2]), str(peak_memory()).encode())
