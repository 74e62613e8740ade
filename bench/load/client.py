"""A client that only notes when bytes arrive: answers are parsed after a run, so that parsing delays no other request.

HTTP/1.1 (RFC 9112) with one connection for each request, and server-sent events.
"""

import asyncio
import json
import re
import ssl
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from piston.bench.load.setting import LoadRequest
from piston.core.errors import EngineError
from piston.core.json_text import json_text

REFUSALS = {429, 503}  # statuses of a server that has too much to do
_OK = 200
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is, the model that is asked, and its key."""

    url: str
    model: str
    api_key: str = ""

    def request(self, body: bytes) -> bytes:
        """The bytes of a request to /v1/completions."""
        parts = urlsplit(self.url)
        head = [
            f"POST {parts.path.rstrip('/').removesuffix('/v1')}/v1/completions HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *([f"Authorization: Bearer {self.api_key}"] if self.api_key else []),
        ]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + body

    @property
    def address(self) -> tuple[str, int, ssl.SSLContext | None]:
        """Host, port, and TLS where the URL asks for it."""
        parts = urlsplit(self.url)
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        return parts.hostname or "", port, ssl.create_default_context() if is_secure else None


@dataclass(slots=True)
class Received:
    """The bytes of one answer, and the time at which each part came."""

    ended: "asyncio.Future[None]"
    parts: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    problem: str | None = None


class _Connection(asyncio.Protocol):
    def __init__(self, data: bytes, received: Received) -> None:
        self._data = data
        self._received = received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        self._received.times.append(time.perf_counter())
        self._received.parts.append(data)

    def connection_lost(self, problem: Exception | None) -> None:
        if problem is not None:
            self._received.problem = f"the connection broke off: {problem}"
        if not self._received.ended.done():
            self._received.ended.set_result(None)


async def ask(endpoint: Endpoint, request: LoadRequest, timeout_s: float) -> Received:
    """Send one request and take all that comes back; a connection that fails or is too slow becomes a problem."""
    loop = asyncio.get_running_loop()
    received = Received(loop.create_future())
    host, port, tls = endpoint.address
    data = endpoint.request(request.body(endpoint.model))
    try:
        transport, _ = await loop.create_connection(lambda: _Connection(data, received), host, port, ssl=tls)
    except OSError as problem:
        received.problem = f"cannot connect: {problem}"
        return received
    try:
        await asyncio.wait_for(received.ended, timeout_s)
    except TimeoutError:
        received.problem = f"no end of the answer within {timeout_s:g} s"
    finally:
        transport.close()
    return received


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What an answer came to; `times` are of the pieces of text, by the clock of `Received`."""

    times: tuple[float, ...]
    num_tokens: int = 0
    num_cached: int = 0
    is_refused: bool = False
    problem: str | None = None


def parse(received: Received) -> Parsed:
    """Read an answer. Pieces are events whose choice has text; a last event that only ends the answer is none."""
    if received.problem is not None:
        return Parsed(times=(), problem=received.problem)
    data = b"".join(received.parts)
    head, _, _ = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    words = lines[0].split()
    if len(words) < 2 or not words[1].isdecimal():  # noqa: PLR2004 - version and status
        return Parsed(times=(), problem=f"the answer is not HTTP: {data[:60]!r}")
    try:
        body = list(_body(data, len(head) + 4, is_chunked=fields.get("transfer-encoding", "").lower() == "chunked"))
    except ValueError as problem:
        return Parsed(times=(), problem=str(problem))
    if (status := int(words[1])) != _OK:
        text = b"".join(part for part, _ in body).decode(errors="replace")
        return Parsed(times=(), is_refused=status in REFUSALS, problem=f"HTTP {status}: {' '.join(text.split())[:200]}")
    return _read(_events(body, _Clock(received)))


def _read(events: Iterator[tuple[float, bytes]]) -> Parsed:
    times: list[float] = []
    usage: dict[str, Any] = {}
    for at, text in events:
        if text.startswith(b"[DONE]"):
            break
        try:
            event = json.loads(text)
        except ValueError:
            return Parsed(times=(), problem=f"an event is not JSON: {text[:60]!r}")
        if "error" in event:
            return Parsed(times=(), problem=f"an error event: {json_text(event['error'])[:200]}")
        usage = event.get("usage") or usage
        if any(choice.get("text") for choice in event.get("choices", ())):
            times.append(at)
    details = usage.get("prompt_tokens_details") or {}
    num_tokens, num_cached = usage.get("completion_tokens"), details.get("cached_tokens") or 0
    if not times or not isinstance(num_tokens, int) or not num_tokens:
        return Parsed(times=(), problem="the stream has no text, or no usage; stream_options.include_usage is needed")
    return Parsed(times=tuple(times), num_tokens=num_tokens, num_cached=num_cached)


class _Clock:
    """When the byte at a place of the answer came."""

    def __init__(self, received: Received) -> None:
        self._times = received.times
        self._ends: list[int] = []
        size = 0
        for part in received.parts:
            size += len(part)
            self._ends.append(size)

    def at(self, place: int) -> float:
        """The time of the part that ends at or behind `place`, an end of bytes."""
        return self._times[bisect_left(self._ends, place)]


def _body(data: bytes, start: int, *, is_chunked: bool) -> Iterator[tuple[bytes, int]]:
    """Parts of the body with the place in `data` at which each ends; chunks are unwrapped (RFC 9112, 7.1).

    Raises ValueError for a chunk whose size is no hexadecimal number.
    """
    if not is_chunked:
        yield data[start:], len(data)
        return
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return
        stated = data[start:line_end].partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(stated):
            raise ValueError(f"a chunk of the answer has the size {stated[:20]!r}, which is no hexadecimal number")
        size = int(stated, 16)
        if size == 0:
            return
        start = line_end + 2
        yield data[start : start + size], min(start + size, len(data))
        start += size + 2


def _events(body: list[tuple[bytes, int]], clock: _Clock) -> Iterator[tuple[float, bytes]]:
    """The data of each event and when it was complete; an unchunked body is one part, so its events have its end."""
    left = b""
    for part, end in body:
        left = (left + part).replace(b"\r\n", b"\n")
        while (cut := left.find(b"\n\n")) >= 0:
            event, left = left[:cut], left[cut + 2 :]
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield clock.at(end - len(left)), line[5:].strip()


def check_usable(parsed: Parsed, request: LoadRequest, system: str) -> None:
    """Raises EngineError where an answer failed otherwise than by refusal, or has another number of tokens."""
    if parsed.problem is not None and not parsed.is_refused:
        raise EngineError(f"{system}: {parsed.problem}")
    if parsed.problem is None and parsed.num_tokens != request.gen_len:
        raise EngineError(
            f"{system} generated {parsed.num_tokens} tokens, not {request.gen_len}; its figures cannot be compared."
        )
