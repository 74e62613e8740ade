"""A system under test in its own process, controlled by lines of JSON (see adapters/serve.py)."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from piston.core.errors import EngineError
from piston.core.json_text import json_text

SERVE = Path(__file__).parent / "adapters" / "serve.py"
# Seconds before each turn. Threads of a system busy-wait for more work after an answer, those of OpenMP for 0.2
# seconds by default, and would take the cores from the next system's first token.
PAUSE = 0.3
_SHOWN = 400  # characters of the system's stderr to keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A system to measure: its kind, the path it opens, and its Python."""

    name: str
    kind: str
    path: str
    python: str
    target: str | None = None  # of a bundle's engines
    digest: str | None = None  # of a bundle's manifest: shows whether two runs measured the same files


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One call: seconds after its start at which every row had 1, 2, ... tokens, and the adapter's other figures."""

    times: tuple[float, ...]
    token_ids: tuple[tuple[int, ...], ...]
    parts: dict[str, float]
    peak_bytes: int


class Child:
    """A loaded system. Leaving the context ends its process.

    Args:
        contender: the system.
        options: what it is opened with.
        timeout: seconds that it may take to load, and for each answer.
        script: words behind its Python that speak for it, instead of adapters/serve.py: they are followed by kind, path
            and options.

    Raises:
        EngineError: it cannot be started, fails, is silent for `timeout` seconds or breaks the protocol.
    """

    def __init__(
        self, contender: Contender, options: dict[str, Any], *, timeout: float, script: Sequence[str] | None = None
    ) -> None:
        self.contender = contender
        self._timeout = timeout
        self._has_answered = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        # Another system's Python must not see our paths. Ours must, as Piston may be on one (`pip install --user`).
        shield = "-P" if contender.python == sys.executable else "-I"
        words = [contender.python, shield, *(script or [str(SERVE)]), contender.kind, contender.path]
        self.started = time.perf_counter()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the rival the caller named
                [*words, json_text(options | {"target": contender.target})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
            )
        except OSError as problem:
            self._errors.close()
            raise EngineError(f"Cannot start {contender.name} with {contender.python}: {problem.strerror}.") from None
        ready = self._receive("ready")
        self.import_s = float(ready["import_s"])
        self.load_s = float(ready["load_s"])
        self.versions: dict[str, str] = dict(ready["versions"])

    def run(self, prompts: Sequence[Sequence[int] | Sequence[str]], gen_len: int, num_beams: int = 1) -> Ran:
        """Generate; every row of text must come back with `gen_len` tokens."""
        search = {"num_beams": num_beams} if num_beams > 1 else {}
        asked = {"prompts": [list(prompt) for prompt in prompts], "gen_len": gen_len, **search}
        answer = self.ask(asked, "ran")
        token_ids = tuple(tuple(row) for row in answer["token_ids"])
        lengths = {len(row) for row in token_ids}
        is_text = not isinstance(prompts[0][0], str)
        if is_text and (lengths != {gen_len} or len(token_ids) != len(prompts) or len(answer["times"]) != gen_len):
            raise EngineError(
                f"{self.contender.name} gave {len(token_ids)} rows of {sorted(lengths)} tokens at "
                f"{len(answer['times'])} times, not {len(prompts)} rows of {gen_len}; its figures cannot be compared."
            )
        return Ran(
            times=tuple(answer["times"]), token_ids=token_ids, parts=answer["parts"], peak_bytes=answer["peak_bytes"]
        )

    def ask(self, message: dict[str, Any], event: str) -> dict[str, Any]:
        """Send one message, after a pause; the answer must be this event."""
        if self._has_answered:  # the first message is part of a measured start
            time.sleep(PAUSE)
        self._has_answered = True
        self._send(message)
        return self._receive(event)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._quietly_close_stdin()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _quietly_close_stdin(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            self._process.kill()  # it has ended already, with our last line unread

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json_text(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure("ended before the first request") from None

    def _receive(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(self._timeout, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            in_time = alarm.is_alive()
            alarm.cancel()
        if not line:
            raise self._failure("ended without an answer" if in_time else f"gave no answer in {self._timeout:g} s")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._failure(f"answered {line[:80]!r}") from None
        if message.get("event") == "error":
            raise self._failure(f"failed: {message.get('message')}")
        if message.get("event") != event:
            raise self._failure(f"answered {message.get('event')!r} instead of {event!r}")
        return message

    def _failure(self, what: str) -> EngineError:
        last = self._last_words()
        said = f"; its last output: {last}" if last else ""
        self.close()
        return EngineError(f"{self.contender.name} ({self.contender.path}) {what}{said}")

    def _last_words(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace")
        return " ".join(text.split())[-_SHOWN:]
