"""Server-sent events, and watching for a client that leaves: for streams and whole answers alike."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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
    events: AsyncIterator[bytes], send: Send, headers: Mapping[str, str], on_error: Callable[[Exception], bytes]
) -> None:
    """Stream events. An error before the first one is raised; later ones become an event."""
    iterator = aiter(events)
    pending = asyncio.ensure_future(anext(iterator, None))
    is_started = False
    try:
        while True:
            await asyncio.wait((pending,), timeout=PING)
            if not pending.done():
                data: bytes | None = b": ping\n\n"
            else:
                try:
                    data = pending.result()
                except Exception as problem:
                    if not is_started:
                        raise
                    await _send_body(send, on_error(problem))
                    break
            if not is_started:
                await _start(send, headers)
                is_started = True
            if data is None:
                break
            await _send_body(send, data)
            if pending.done():
                pending = asyncio.ensure_future(anext(iterator, None))
    finally:
        pending.cancel()
        with contextlib.suppress(BaseException):
            await pending
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _start(send: Send, headers: Mapping[str, str]) -> None:
    known = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (known | dict(headers)).items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _send_body(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
