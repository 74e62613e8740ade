"""What the server adds: HTTP and scheduling a token at batch 1, and the first answer of a new process.

    python scripts/serving_overhead.py BUNDLE [--target T] [--tokens N] [--rounds N]

The first part streams from an engine whose answers are written down, so that nothing but the server is measured: time
between tokens as the client sees it, processor time of the server's process a token, and the same engine stepped by a
scheduler without a server. Processor time says more than the clock where the machine is busy. The second part starts
`piston serve BUNDLE` and asks for one token as soon as it listens.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from piston.runtime.backends.engine import Logits
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.bundle import Bundle
from piston.runtime.generate.generation import run
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams

MESSAGES = [{"role": "user", "content": "Hello"}]


def main() -> None:
    """Measure and print; or, in a child process, serve the written answers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_written(arguments)
        return
    alone = 1e6 * statistics.median(stepped(arguments) for _ in range(arguments.rounds))
    own = [sys.executable, __file__, str(arguments.bundle), "--serve", "--tokens", str(arguments.tokens)]
    with server(own) as (process, port):
        seconds, processor = zip(
            *(streamed(port, process, arguments.tokens) for _ in range(arguments.rounds)), strict=True
        )
    clock, used = (1e6 * statistics.median(column) for column in (seconds, processor))
    print(f"the engine under a scheduler alone  {alone:6.0f} us a token")
    print(f"through the server, by the clock    {clock:6.0f} us a token")
    print(f"processor time of the server        {used:6.0f} us a token")
    print(f"HTTP and scheduling                 {used - alone:6.0f} us a token (goal: at most 500)")
    words = [sys.executable, "-m", "piston.cli.main", "serve", str(arguments.bundle), "--port", "0", "--max-batch", "1"]
    words += ["--target", arguments.target] if arguments.target else []
    firsts = [first_answer(words) for _ in range(arguments.rounds)]
    wall, busy = (statistics.median(column) for column in zip(*firsts, strict=True))
    print(f"first answer of a new process       {wall:6.2f} s, {busy:.2f} s of processor time (goal: at most 1 s)")


def written(arguments: argparse.Namespace) -> LanguageModel:
    """A bundle's tokenizer and template over an engine whose answer is known."""
    bundle = Bundle.open(arguments.bundle, verify=False)
    tokenizer, size = bundle.tokenizer(), bundle.manifest.model.vocab_size
    ids = tokenizer.encode_inside("one two three four five six seven eight, and then the same again. ")
    rows = [np.eye(1, size, token_id, np.float32)[0] for token_id in ids]

    def script(history: tuple[int, ...]) -> Logits:
        return rows[len(history) % len(rows)]

    engine = ScriptedEngine(script, vocab_size=size, capacity=arguments.tokens + 256)
    return LanguageModel(bundle.manifest, engine, tokenizer, bundle.chat_template())


def serve_written(arguments: argparse.Namespace) -> None:
    """Serve it on a free port until SIGTERM."""
    import asyncio
    import socket

    from piston.serving.app import Server
    from piston.serving.cli import serve
    from piston.serving.settings import Settings

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        asyncio.run(serve(Server([("written", written(arguments))], Settings()), listener))


def stepped(arguments: argparse.Namespace) -> float:
    """Processor seconds a token of the same engine, sampler and text, in this process and without a server."""
    model = written(arguments)
    generation = model.prepare(model.render(MESSAGES), SamplingParams(max_tokens=arguments.tokens, ignore_eos=True))
    began = time.thread_time()
    for _ in run(model.engine, [generation]):
        pass
    return (time.thread_time() - began) / arguments.tokens


def streamed(port: int, process: "subprocess.Popen[str]", num_tokens: int) -> tuple[float, float]:
    """Seconds between tokens of a stream, and the processor seconds that the server took for each."""
    body = {"model": "written", "messages": MESSAGES, "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True}
    before = processor_seconds(process.pid)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": True}))
    arrivals = [time.perf_counter() for line in connection.getresponse() if line.startswith(b"data: ")]
    connection.close()
    return (arrivals[-1] - arrivals[0]) / num_tokens, (processor_seconds(process.pid) - before) / num_tokens


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_answer(words: list[str]) -> tuple[float, float]:
    """Seconds from the start of a server's process to its first token, and its processor seconds until then."""
    began = time.perf_counter()
    with server(words) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("GET", "/v1/models")
        (model,) = json.loads(connection.getresponse().read())["data"]
        body = {"model": model["id"], "messages": MESSAGES, "max_tokens": 1}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status  # noqa: PLR2004 - of HTTP
        connection.close()
        return time.perf_counter() - began, processor_seconds(process.pid)


@contextmanager
def server(words: list[str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process that serves, and its port; ended with SIGTERM."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                yield process, int(found[1])
                return
        raise SystemExit(f"{' '.join(words)} ended before it served.")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


if __name__ == "__main__":
    main()
