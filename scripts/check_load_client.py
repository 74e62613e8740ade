"""The load client of `piston bench --serve` beside guidellm, on a server whose times are known.

    python scripts/check_load_client.py BUNDLE --guidellm PATH

PATH is the command of an environment with guidellm==0.8.1; BUNDLE gives it a tokenizer. The server here sends the first
token of every answer after FIRST seconds and another each STEP, whatever the load, so it says what both must measure.
On a server that computes, the two would not be comparable on few cores: guidellm's own processes take some of them.

Exits with 1 where a median or the throughput differs by more than 3 %, from guidellm's or from what the server did.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

FIRST, STEP = 0.150, 0.020  # seconds
PROMPT, TOKENS, ROUNDS = 128, 64, 12  # tokens of a prompt and of an answer; answers to each client
ALLOWED = 0.03
FIGURES = ("time to first token, ms", "inter-token latency, ms", "tokens/s")


def main() -> int:
    """Measure one client and eight; print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--guidellm", required=True, help="the command, of an environment of its own")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(2)
    worst = 0.0
    print("| clients | figure | the server's own | guidellm | piston bench |\n|---|---|---|---|---|")
    for clients in (1, 8):
        known = (1000 * FIRST, 1000 * STEP, clients * TOKENS / (FIRST + (TOKENS - 1) * STEP))
        theirs = by_guidellm(arguments, port, clients)
        ours = by_piston(port, clients)
        for name, exact, their, our in zip(FIGURES, known, theirs, ours, strict=True):
            print(f"| {clients} | {name} | {exact:.1f} | {their:.1f} | {our:.1f} |")
            worst = max(worst, abs(our / their - 1), abs(our / exact - 1))
    server.terminate()
    print(f"\nlargest difference of piston bench from either: {worst:.1%}")
    return int(worst > ALLOWED)


def by_guidellm(arguments: argparse.Namespace, port: int, clients: int) -> tuple[float, float, float]:
    """What guidellm measures."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(arguments.bundle / "tokenizer.json", place)
        Path(place, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        report = Path(place, "report.json")
        words = {
            "--backend": f"kind=openai_http,target=http://127.0.0.1:{port},model=paced,request_format=/v1/completions",
            "--tokenizer": f"kind=huggingface_auto,model={place}",
            "--profile": f"kind=concurrent,streams={clients}",
            "--constraint": f"kind=max_requests,count={ROUNDS * clients}",
            "--data": f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS}",
            "--output": f"kind=json,path={report}",
        }
        options = [part for pair in words.items() for part in pair]
        command = [arguments.guidellm, "run", "--disable-console-interactive", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        found = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    kinds = {"time_to_first_token_ms": "median", "inter_token_latency_ms": "median", "output_tokens_per_second": "mean"}
    first, step, rate = (float(found[name]["successful"][kind]) for name, kind in kinds.items())
    return first, step, rate


def by_piston(port: int, clients: int) -> tuple[float, float, float]:
    """What `piston bench --serve` measures."""
    words = ["--concurrency", clients, "--requests", ROUNDS * clients, "--prompt-len", PROMPT, "--gen-len", TOKENS]
    words += ["--repeats", 1, "--warmup", 0, "--json"]
    command = [str(Path(sys.executable).with_name("piston")), "bench", "--serve", f"http://127.0.0.1:{port}"]
    printed = subprocess.run([*command, *map(str, words)], check=True, stdout=subprocess.PIPE).stdout
    run = json.loads(printed)["systems"][0]["loads"][0]["runs"][0]
    times = [item["times"] for item in run["sent"]]
    steps = [(item[-1] - item[0]) / (len(item) - 1) for item in times]
    return 1000 * median(item[0] for item in times), 1000 * median(steps), sum(map(len, times)) / run["seconds"]


def serve(port: int) -> None:
    """Answer on a port until the process ends."""
    import uvicorn

    async def ready(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "paced", "object": "model"}]})

    async def complete(request: Request) -> Response:
        began, body = time.monotonic(), await request.json()
        return StreamingResponse(answer(began, int(body["max_tokens"])), media_type="text/event-stream")

    routes = [Route(path, ready) for path in ("/v1/models", "/health")]
    app = Starlette(routes=[*routes, Route("/v1/completions", complete, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


async def answer(began: float, count: int) -> AsyncIterator[str]:
    """Events of an answer of `count` tokens, each at its time."""
    for token in range(count):
        await asyncio.sleep(began + FIRST + token * STEP - time.monotonic())
        choice = {"index": 0, "text": " a", "finish_reason": "length" if token == count - 1 else None, "logprobs": None}
        yield event([choice])
    yield event([], {"prompt_tokens": PROMPT, "completion_tokens": count, "total_tokens": PROMPT + count})
    yield "data: [DONE]\n\n"


def event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
    """One server-sent event."""
    body = {"id": "paced", "object": "text_completion", "created": 0, "model": "paced", "choices": choices}
    return f"data: {json.dumps(body | ({'usage': usage} if usage else {}))}\n\n"


if __name__ == "__main__":
    sys.exit(main())
