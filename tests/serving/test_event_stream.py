"""A stream of events as an ASGI server gets it: its order, its pings, errors, and clients that leave."""

import asyncio

import pytest

from piston.serving import event_stream
from piston.serving.event_stream import ClientLeftError, send_events, until_left

ENDED = ("http.response.body", b"", False)
STARTED = ("http.response.start", 200)
PING = ("http.response.body", b": ping\n\n", True)


def body(data):
    return ("http.response.body", data, True)


class Server:
    """Keeps what it is sent; `hold` is awaited before the first message is kept."""

    def __init__(self, hold=None):
        self.sent = []
        self._hold = hold

    async def send(self, message):
        hold, self._hold = self._hold, None
        if hold is not None:
            await hold
        if message["type"] == "http.response.start":
            self.sent.append((message["type"], message["status"]))
        else:
            self.sent.append((message["type"], message["body"], message["more_body"]))


def sent(events, server=None):
    """What a server is sent for events, an async generator."""
    server = server or Server()
    asyncio.run(send_events(events, server.send, {}, lambda problem: str(problem).encode()))
    return server.sent


async def events(*items):
    """Bytes are given, seconds waited for, errors raised."""
    for item in items:
        if isinstance(item, bytes):
            yield item
        elif isinstance(item, Exception):
            raise item
        else:
            await asyncio.sleep(item)


def test_events_are_sent_in_order_and_the_body_is_ended():
    assert sent(events(b"a", b"b")) == [STARTED, body(b"a"), body(b"b"), ENDED]
    assert sent(events()) == [STARTED, ENDED]


def test_an_error_before_the_first_event_is_raised_and_nothing_is_sent():
    server = Server()
    with pytest.raises(ValueError, match="too much"):
        sent(events(0.01, ValueError("too much")), server)
    assert server.sent == []


def test_an_error_after_an_event_or_a_ping_becomes_an_event(monkeypatch):
    assert sent(events(b"a", ValueError("broken"))) == [STARTED, body(b"a"), body(b"broken"), ENDED]
    monkeypatch.setattr(event_stream, "PING", 0.05)
    found = sent(events(0.12, ValueError("broken")))
    assert found[:2] == [STARTED, PING]
    assert found[-2:] == [body(b"broken"), ENDED]


def test_silence_is_broken_by_pings_and_only_silence(monkeypatch):
    monkeypatch.setattr(event_stream, "PING", 60)
    assert PING not in sent(events(*[b"a", 0.01] * 5))
    monkeypatch.setattr(event_stream, "PING", 0.05)
    found = sent(events(0.3, b"a"))
    assert found[0] == STARTED
    assert found[-2:] == [body(b"a"), ENDED]
    assert set(found[1:-2]) == {PING}


@pytest.mark.parametrize("more", [(), (b"a",), (0.05, b"a")])
def test_what_a_slow_client_gets_begins_with_the_head(monkeypatch, more):
    """The head of a ping waits for the client while an event comes, or the end."""
    monkeypatch.setattr(event_stream, "PING", 0.05)
    server = Server(hold=asyncio.sleep(0.2))
    found = [item for item in sent(events(0.1, *more), server) if item != PING]
    assert found == [STARTED, *(body(item) for item in more if isinstance(item, bytes)), ENDED]


@pytest.mark.parametrize("first", [b"a", 0.0])
def test_the_events_of_a_client_that_leaves_are_closed_at_once(first):
    closed = []

    async def endless():
        try:
            yield b"a"
            await asyncio.sleep(first if isinstance(first, float) else 60)
            while True:
                await asyncio.sleep(0)
                yield b"b"
        finally:
            closed.append(True)

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def leave():
        server = Server()
        work = send_events(endless(), server.send, {}, lambda _: b"")
        with pytest.raises(ClientLeftError):
            await until_left(work, receive)
        assert closed == [True]
        assert ENDED not in server.sent

    asyncio.run(leave())
