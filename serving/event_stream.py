"""Server-sent events, and watching for a client that leaves: for streams and whole answers alike."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Send

PING = 15.0  # seconds of silence after which a comment keeps proxies from closing the connection
DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")
_encode = msgspec.json.Encoder().encode


def event(data: Any, name: str | None = None) -> bytes:
    """One event."""
    kind = b"" if name is None else f"event: {name}\n".encode()
    return kind + b"data: " + _encode(data) + b"\n\n"


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


async def until_left(work: Awaitable[Result], receive: Receive) -> Result:
    """What `work` gives; it is cancelled when the client leaves first, and ClientLeftError is raised."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for item in (task, leaving):
            item.cancel()
            with contextlib.suppress(BaseException):
                await item


async def send_events(
    events: AsyncGenerator[bytes, None], send: Send, headers: Mapping[str, str], on_error: Callable[[Exception], bytes]
) -> None:
    """Stream events. An error before the first one is raised; later ones become an event."""
    stream = _Stream(send, headers)
    pings = asyncio.ensure_future(stream.ping())
    try:
        async with contextlib.aclosing(events):
            async for data in events:
                await stream.write(data)
    except Exception as problem:
        if not stream.is_started:
            raise
        await stream.write(on_error(problem))
    finally:
        pings.cancel()
        with contextlib.suppress(BaseException):
            await pings
    await stream.end()


class _Stream:
    """The response, begun by the first thing that is written; two tasks write, one at a time."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self._headers = send, headers
        self._written_at = time.monotonic()
        self._writing = asyncio.Lock()
        self.is_started = False

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        self._written_at = time.monotonic()
        async with self._writing:
            if not self.is_started:
                await self._start()
                self.is_started = True
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def ping(self) -> None:
        """Send comments into silence, for ever."""
        while True:
            silence = time.monotonic() - self._written_at
            if silence >= PING:
                await self.write(b": ping\n\n")
            else:
                await asyncio.sleep(PING - silence)

    async def end(self) -> None:
        """End the body."""
        await self.write(b"", more=False)

    async def _start(self) -> None:
        known = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        items = (known | dict(self._headers)).items()
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in items]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
