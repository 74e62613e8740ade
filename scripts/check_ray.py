"""Deploy a bundle on Ray Serve on this machine, two replicas of one core, and check what a user of replicas relies on.

    python scripts/check_ray.py bundles/smollm2 [--json]

Needs piston[ort,ray] and Linux. Every replica is a process on this machine; no network is in what is seen here. Checks
that answers equal those of `piston serve`, measures what the way through Ray adds, and checks that the second turn of
a session finds its prefix, that a flood is refused with 429, that of two streams the one whose replica is killed ends
and the other is whole, that the next requests are answered, and that a new version is deployed under load without a
failed request. Exit status 1 where a check fails.
"""

import argparse
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve

from piston.serving.ray import Deployment, application

Check = tuple[bool, str]
PROMPT, ANSWER, STREAMED = 24, 16, 64  # tokens
BREAK = 5.0  # seconds within which the client of a killed replica knows it
BACK = 60.0  # seconds within which a killed replica is replaced
draw = random.Random(8)  # noqa: S311 - prompts


class Client:
    """Plain HTTP to a server of OpenAI's API; every request its own connection."""

    def __init__(self, port: int, model: str) -> None:
        self.port, self.model = port, model

    def send(self, prompt: list[int], session: str | None = None, **options: Any) -> http.client.HTTPResponse:
        """A request of token ids; its answer is not read yet."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
        headers = {"Content-Type": "application/json", "Connection": "close"}
        headers |= {} if session is None else {"X-Session-ID": session}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body | options), headers)
        return connection.getresponse()

    def ask(self, prompt: list[int], session: str | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and the answer."""
        with self.send(prompt, session, **options) as answer:
            return answer.status, json.loads(answer.read() or b"{}")

    def text(self, prompt: list[int], session: str | None = None, **options: Any) -> str:
        """The text, or the error."""
        status, answer = self.ask(prompt, session, **options)
        return str(answer["choices"][0]["text"]) if status == 200 else f"HTTP {status}: {answer}"  # noqa: PLR2004

    def cached(self, prompt: list[int], session: str) -> int:
        """Tokens of the prompt that the replica of this session has."""
        return int(self.ask(prompt, session)[1]["usage"]["prompt_tokens_details"]["cached_tokens"])


def prompt(length: int = PROMPT) -> list[int]:
    """Random words."""
    return [draw.randrange(100, 120) for _ in range(length)]


def equal_answers(alone: Client, replicated: Client) -> Check:
    """Greedy and seeded answers of every replica are those of one server."""
    asked = [(prompt(), options) for options in ({}, {"temperature": 1.0, "seed": 5}) for _ in range(4)]
    expected = [alone.text(ids, **options) for ids, options in asked]
    found = [[replicated.text(ids, f"s{number}", **options) for ids, options in asked] for number in range(6)]
    same = sum(row == expected for row in found)
    return same == len(found), f"{same} of {len(found)} sessions gave the {len(asked)} answers of one server"


def hop(alone: Client, replicated: Client) -> Check:
    """What Ray's proxy adds to a stream of one request at a time; the two take turns, after one round to warm up."""
    seconds: dict[Client, list[tuple[float, float]]] = {alone: [], replicated: []}
    for client in (alone, replicated) * 16:
        began = time.perf_counter()
        with client.send(prompt(), "hop", stream=True, max_tokens=STREAMED) as answer:
            answer.readline()
            first = time.perf_counter()
            answer.read()
        seconds[client].append((first - began, (time.perf_counter() - first) / STREAMED))
    (first, token), (first_there, token_there) = (
        [statistics.median(column) for column in zip(*found[1:], strict=True)] for found in seconds.values()
    )
    added = (
        f"{1e3 * (first_there - first):.1f} ms to the first token, {1e6 * (token_there - token):.0f} us to each next"
    )
    return True, f"{added}; alone {1e3 * first:.1f} ms and {1e3 * token:.2f} ms"


def second_turn(client: Client) -> Check:
    """A session returns to the replica that has its prefix, others in between or not."""
    kept = []
    for number in range(6):
        first, session = prompt(48), f"chat-{number}"
        client.ask(first, session)
        client.ask(prompt(48), f"other-{number}")
        kept.append(client.cached(first + prompt(4), session))
    return all(count >= 40 for count in kept), f"cached tokens of prompts of 52: {kept}"  # noqa: PLR2004 - of 48


def flood(client: Client, limit: int) -> Check:
    """Ten times what all replicas run and queue: each request is answered or refused with 429, none hangs."""
    refusals: list[str | None] = []

    def one(number: int) -> int:
        with client.send(prompt(), f"f{number}", max_tokens=64) as answer:
            answer.read()
            if answer.status == 429:  # noqa: PLR2004 - too many requests
                refusals.append(answer.headers.get("retry-after"))
            return answer.status

    count = min(10 * limit, 400)
    with ThreadPoolExecutor(count) as pool:
        statuses = list(pool.map(one, range(count)))
    counted = {status: statuses.count(status) for status in sorted(set(statuses))}
    good = set(counted) == {200, 429} and all(refusals)
    return good, f"statuses of {count} requests: {counted}; Retry-After: {sorted(map(str, set(refusals)))}"


def killed(client: Client) -> Check:
    """Two streams on two replicas, one of which is killed."""
    first, other = on_two_replicas(client)
    streams = [client.send(prompt(), session, stream=True, max_tokens=900) for session in (first, other)]
    for stream in streams:
        stream.readline()
    pid = replica_pids()[0]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda stream: (is_whole(stream), time.monotonic() - began), streams))
    broken = [seconds for whole, seconds in ends if not whole]
    status, failed, began = 0, 0, time.monotonic()
    while status != 200 and time.monotonic() - began < BACK:  # noqa: PLR2004
        status = max(client.ask(prompt(), session)[0] for session in (first, other))
        failed += status != 200  # noqa: PLR2004
    answered = time.monotonic() - began
    until(lambda: len(replica_pids()) == 2, BACK)  # noqa: PLR2004 - as before
    good = len(broken) == 1 and broken[0] < BREAK and status == 200  # noqa: PLR2004
    seen = f"{len(broken)} of 2 streams ended early, after {min(broken, default=0):.2f} s"
    return good, f"{seen}; then {failed} failed requests, both sessions answered after {answered:.1f} s"


def redeployed(client: Client, deployment: Deployment) -> Check:
    """A new version replaces both replicas while four clients go on asking."""
    done, failed, stop, before = [0], list[str](), threading.Event(), set(replica_pids())

    def one(number: int) -> None:
        while not stop.is_set():
            try:
                text = client.text(prompt(), f"r{number}")
            except (OSError, http.client.HTTPException, ValueError) as problem:
                text = f"HTTP {problem!r}"
            done[0] += 1
            if text.startswith("HTTP "):
                failed.append(text[:200])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    changed = dataclasses.replace(deployment, settings=dataclasses.replace(deployment.settings, max_stall=0.04))
    serve.run(application(changed), name="piston", route_prefix="/")
    until(lambda: len(replica_pids()) == 2 and not before & set(replica_pids()), BACK)  # noqa: PLR2004 - both new
    is_new = not before & set(replica_pids())
    stop.set()
    for thread in threads:
        thread.join()
    return is_new and not failed, f"{len(failed)} of {done[0]} requests failed{': ' + failed[0] if failed else ''}"


def on_two_replicas(client: Client) -> tuple[str, str]:
    """Two sessions whose requests go to different replicas: the second does not find the first's prefix."""
    for number in range(20):
        ids = prompt(48)
        client.ask(ids, "first")
        if client.cached(ids, f"other-{number}") == 0:
            return "first", f"other-{number}"
    raise SystemExit("error: all sessions go to one replica")


def is_whole(stream: http.client.HTTPResponse) -> bool:
    """Whether a stream ends as it should."""
    try:
        return stream.read().rstrip().endswith(b"data: [DONE]")
    except (OSError, http.client.HTTPException):
        return False


def replica_pids() -> list[int]:
    """Processes of Ray's replicas on this machine."""

    def found() -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(b"ray::ServeReplica:"):
                    yield int(path.parent.name)
            except OSError:
                continue  # it has ended

    return sorted(found())


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, at most so long; checks judge what is then the case."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def main() -> int:
    """Deploy, check, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--address", help="a cluster that `ray start --head --num-cpus 2` began; default: a new one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    deployment = Deployment(
        bundle=f"model={arguments.bundle.absolute()}", replicas=2, cpus=1, max_batch=4, max_length=1024
    )
    words = [sys.executable, "-m", "piston.cli.main", "serve", deployment.bundle, "--port", "0", "--threads", "1"]
    words += ["--max-batch", "4", "--max-length", "1024"]
    checks: dict[str, Check] = {}
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = None
        for line in server.stderr:
            if found := re.search(r"serving on http://\S+:(\d+)", line):
                break
            print(line, end="", file=sys.stderr)
        if found is None:
            return 1
        threading.Thread(target=server.stderr.read, daemon=True).start()
        port = free_port()
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # a cluster of this machine alone
        local = {} if arguments.address else {"num_cpus": 2, "include_dashboard": False}
        ray.init(address=arguments.address, log_to_driver=False, configure_logging=False, **local)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        began = time.perf_counter()
        serve.run(application(deployment), name="piston", route_prefix="/")
        checks["two replicas answer, s"] = (len(replica_pids()) == 2, f"{time.perf_counter() - began:.1f}")  # noqa: PLR2004
        client = Client(port, "model")
        checks["equal answers"] = equal_answers(Client(int(found[1]), "model"), client)
        checks["what the hop costs"] = hop(Client(int(found[1]), "model"), client)
        checks["a second turn has cached tokens"] = second_turn(client)
        checks["a flood is refused with 429"] = flood(client, 2 * (4 + 16))
        checks["a replica is killed in mid-stream"] = killed(client)
        checks["a new version under load"] = redeployed(client, deployment)
    finally:
        server.terminate()
        server.wait(30)
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
    if arguments.json:
        print(json.dumps({name: {"holds": holds, "seen": seen} for name, (holds, seen) in checks.items()}, indent=1))
    else:
        for name, (holds, seen) in checks.items():
            print(f"{'ok  ' if holds else 'FAIL'} {name}: {seen}")
    return 0 if all(holds for holds, _ in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
