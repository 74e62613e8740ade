"""A server that answers at once, to show what the client itself can take. Run as a file; standard library only.

    python -I echo.py PORT [SECONDS]

It speaks as much of OpenAI's API as the benchmark asks for: GET /v1/models, and POST /v1/completions as a stream of
`max_tokens` events, each sent on its own SECONDS after the one before (0).
"""

import asyncio
import json
import sys

_EVENT = (
    b'data: {"id":"echo","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"x"}]}\n\n'
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request and close the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if head.startswith("GET"):
            body = b'{"object":"list","data":[{"id":"echo","object":"model"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        else:
            await _stream(head, reader, writer)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client left
    finally:
        writer.close()


async def _stream(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    lengths = [line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    asked = json.loads(await reader.readexactly(int(lengths[0])))
    count, prompt = asked["max_tokens"], asked["prompt"]
    usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    for _ in range(count):
        await asyncio.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)  # noqa: PLR2004 - the second word
        writer.write(_chunk(_EVENT))
    end = json.dumps({"choices": [], "usage": usage}).encode()
    writer.write(_chunk(b"data: " + end + b"\n\ndata: [DONE]\n\n") + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=2**24, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
