"""What a task answers under a path, and what its function is given beside the request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from piston.serving.errors import RequestError
from piston.serving.event_stream import until_left
from piston.serving.fields import Refused

IGNORED = "x-piston-ignored-fields"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and under which conditions."""

    request_id: str
    salt: str = ""  # of the API key
    deadline: float | None = None  # a time.monotonic()

    @classmethod
    def of(cls, request: Request) -> "Caller":
        """Of an HTTP request; raises RequestError where its X-Request-Timeout is no number of seconds."""
        return cls(request_id=request.state.request_id, salt=request.state.salt, deadline=_deadline(request))


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to an answer.

    Args:
        caller: who asks.
        ignored: fields that were left out of account.
        workers: threads for what would keep the event loop waiting.
        compilers: those for grammars, which may take long.
    """

    caller: Caller
    ignored: list[str]
    workers: ThreadPoolExecutor
    compilers: ThreadPoolExecutor

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {IGNORED: ", ".join(self.ignored)} if self.ignored else {}

    async def in_worker(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, which is run off the event loop and off the engine threads."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, work)

    def respond(self, answer: Callable[[], Awaitable[Any]], media_type: str = "application/json") -> ASGIApp:
        """A whole answer: JSON, or bytes of another type. What makes it is cancelled when the client leaves."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            data = await until_left(answer(), receive)
            body = data if isinstance(data, bytes) else msgspec.json.encode(data)
            await Response(body, 200, self.headers, media_type)(scope, receive, send)

        return app


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one path.

    Args:
        kind: the fields of a request; its docstring is the title of its table in docs/serving.md.
        answer: called with the Served bundle, the request, and its Call; gives what answers.
        refused: fields that are known and not supported.
        suits: whether a bundle can answer the fields of a request that names none.
    """

    kind: type[msgspec.Struct]
    answer: Callable[[Any, Any, Call], Awaitable[ASGIApp]]
    refused: Mapping[str, Refused] = field(default_factory=dict)
    suits: Callable[[Any, Mapping[str, Any]], bool] = lambda served, given: True  # noqa: ARG005


def _deadline(request: Request) -> float | None:
    """A time.monotonic(), from the header X-Request-Timeout in seconds."""
    stated = request.headers.get("x-request-timeout")
    if stated is None:
        return None
    try:
        seconds = float(stated)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:  # noqa: PLR2004 - beyond any request; NaN is outside too
        raise RequestError(f"X-Request-Timeout is {stated!r}; it must be a number of seconds above 0.")
    return time.monotonic() + seconds
