"""Starts the server of a system in a process of its own, and waits until it answers."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from piston.bench.child import SERVE, Contender
from piston.bench.load.client import Endpoint
from piston.bench.systems import URL
from piston.core.errors import EngineError
from piston.core.json_text import json_text

ECHO = "echo"
START = 300.0  # seconds that a server may take to load
KEY = "OPENAI_API_KEY"  # environment variable with the key of a server that asks for one
_ECHO = Path(__file__).with_name("echo.py")
_SHOWN = 400  # characters of a server's stderr to keep


class LoadedServer:
    """A server that answers. Leaving the context ends its process; a server of a URL is left as it is.

    Raises:
        EngineError: it cannot be started, ends, or does not answer within START seconds.
    """

    def __init__(self, contender: Contender, options: dict[str, Any]) -> None:
        self.contender = contender
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        url = contender.path
        if contender.kind != URL:
            port = _free_port()
            url = f"http://127.0.0.1:{port}"
            self._process = self._start(_words(contender, options | {"port": port}))
        try:
            self.endpoint = Endpoint(url=url, model=self._model(url), api_key=os.environ.get(KEY, ""))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(  # noqa: S603 - the rival the caller named
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors
            )
        except OSError as problem:
            self._errors.close()
            name = self.contender.name
            raise EngineError(f"Cannot start the server of {name} with {words[0]}: {problem.strerror}.") from None

    def _model(self, url: str) -> str:
        """The first model of /v1/models, once it is served."""
        address = f"{url.rstrip('/').removesuffix('/v1')}/v1/models"
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end, problem = time.monotonic() + (START if self._process is not None else 5.0), "no answer"
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                raise EngineError(f"The server of {self.contender.name} ended: {self._last_words()}")
            try:
                with opener.open(urllib.request.Request(address, headers=headers), timeout=10) as answer:  # noqa: S310 - checked
                    return str(json.loads(answer.read())["data"][0]["id"])
            except (OSError, ValueError, KeyError, IndexError, TypeError) as found:
                problem = str(found)
                if isinstance(found, urllib.error.HTTPError):
                    found.close()
            time.sleep(0.05)
        raise EngineError(
            f"{self.contender.name} does not answer at {address}: {problem}. {self._last_words()}".strip()
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        return " ".join(self._errors.read().decode("utf-8", "replace").split())[-_SHOWN:]


def echo_contender() -> Contender:
    """The server that shows the client's own limit."""
    return Contender(name="echo", kind=ECHO, path=str(_ECHO), python=sys.executable)


def _words(contender: Contender, options: dict[str, Any]) -> list[str]:
    if contender.kind == ECHO:
        return [contender.python, "-I", contender.path, str(options["port"])]
    # As in piston.bench.child: another system's Python must not see our paths.
    shield = "-P" if contender.python == sys.executable else "-I"
    words = [contender.python, shield, str(SERVE), contender.kind, contender.path]
    return [*words, json_text(options | {"target": contender.target})]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
