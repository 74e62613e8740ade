"""A live server over scripted engines: uvicorn in a thread, on a free port of the loopback interface."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import types

import openai
import uvicorn.server

from piston.serving.app import Server
from piston.serving.cli import _http_server


class Live:
    """A server that answers, its address, and plain HTTP to it."""

    def __init__(self, server, port):
        self.server = server
        self.port = port
        plain = openai.DefaultHttpxClient(verify=False)  # without reading the certificates of all authorities
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="anything", max_retries=0, timeout=20, http_client=plain
        )

    def thread(self, name="toy"):
        return self.server.served[name].thread

    def request(self, verb, path, body=None, headers=None):
        """(status, headers, body) of one request; a body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(verb, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def post(self, path, body, headers=None):
        status, _, data = self.request("POST", path, body, headers)
        return status, json.loads(data)

    def form(self, path, fields, file):
        """(status, JSON) of a form with a file, given by its path."""
        heads = [f'name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        heads.append(f'name="file"; filename="{file.name}"\r\n\r\n'.encode() + file.read_bytes() + b"\r\n")
        data = b"".join(b"--part\r\nContent-Disposition: form-data; " + head for head in heads) + b"--part--\r\n"
        return self.post(path, data, {"Content-Type": "multipart/form-data; boundary=part"})


async def nap(seconds):
    """uvicorn looks ten times a second whether it shall end and whether all connections did; hundreds of tests wait."""
    await asyncio.sleep(seconds / 20)


uvicorn.server.asyncio = types.SimpleNamespace(**vars(asyncio) | {"sleep": nap})


@contextlib.contextmanager
def serving(models, settings):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # who connects before uvicorn accepts waits
    server, loop, started = Server(models, settings), asyncio.new_event_loop(), threading.Event()
    http_server = _http_server(server)

    async def run():
        server.start()
        started.set()
        try:
            await http_server.serve(sockets=[listener])
        finally:
            await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    live = Live(server, listener.getsockname()[1])
    try:
        assert started.wait(10)
        yield live
    finally:
        live.client.close()
        http_server.should_exit = True
        thread.join(20)
        listener.close()
        loop.close()
        assert not thread.is_alive()
