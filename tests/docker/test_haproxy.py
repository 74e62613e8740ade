"""docker/haproxy.cfg before two live servers, where Debian's HAProxy is installed."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docker/haproxy.cfg"
SCRIPTED = ROOT / "tests/support/scripted_piston.py"
SESSIONS = [f"session-{number}" for number in range(12)]

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(*replicas, port):
    named = {f"PISTON_REPLICA_{number}": f"127.0.0.1:{replica}" for number, replica in enumerate(replicas, 1)}
    return os.environ | named | {"PISTON_BIND": f"127.0.0.1:{port}"}


def replica(bundle, reply):
    """A `piston serve` process whose engine is scripted."""
    words = [sys.executable, SCRIPTED, reply, "0.002", "serve", f"toy={bundle}", "--port", "0"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def port_of(process):
    return int(next(filter(None, (re.search(r"serving on http://\S+:(\d+)", line) for line in process.stderr)))[1])


@pytest.fixture
def proxied(bundle):
    """(two replicas that answer `hello` and `no`, port of the proxy); both are known to the proxy as ready."""
    with contextlib.ExitStack() as stack:
        replicas = [replica(bundle, "hello"), replica(bundle, "no")]
        port = free_port()
        words, env = ["haproxy", "-f", CONFIG], environment(*map(port_of, replicas), port=port)
        proxy = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for process in (*replicas, proxy):
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            if process.stderr is not None:
                stack.callback(process.stderr.close)
        end = time.monotonic() + 20
        while {said(port) for _ in range(2)} != {"hello", "no"}:
            assert time.monotonic() < end
        yield replicas, port


def said(port, session=None):
    """The answer to one request; None where there is none."""
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    headers = {"Content-Type": "application/json"} | ({} if session is None else {"X-Session-ID": session})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())["choices"][0]["message"]["content"]
    except (OSError, http.client.HTTPException):
        return None


@needs_haproxy
def test_haproxy_accepts_the_configuration():
    words = ["haproxy", "-c", "-f", CONFIG]
    result = subprocess.run(words, env=environment(1, 2, port=3), capture_output=True, text=True, check=False)
    assert (result.returncode, "warning" in result.stderr.lower()) == (0, False)


@needs_haproxy
def test_a_session_returns_to_its_replica_and_goes_on_with_the_other_when_that_is_killed(proxied):
    replicas, port = proxied
    first = {session: said(port, session) for session in SESSIONS}
    assert set(first.values()) == {"hello", "no"}  # both have some of them
    assert {session: said(port, session) for session in SESSIONS} == first
    replicas[0].kill()
    replicas[0].wait(10)
    assert {said(port, session) for session in SESSIONS} == {"no"}  # not one request is lost, checks or not
    kept = [session for session in SESSIONS if first[session] == "no"]
    assert [said(port, session) for session in kept] == ["no"] * len(kept)


@needs_haproxy
def test_a_replica_that_shuts_down_loses_no_request(proxied):
    replicas, port = proxied
    replicas[0].terminate()
    end = time.monotonic() + 20
    while replicas[0].poll() is None:
        assert {said(port, session) for session in SESSIONS} <= {"hello", "no"}
        assert time.monotonic() < end
    assert {said(port, session) for session in SESSIONS} == {"no"}


def test_sessions_are_hashed_so_that_a_lost_replica_moves_only_its_own():
    text = CONFIG.read_text(encoding="utf-8")
    assert "balance hdr(X-Session-ID)" in text
    assert "hash-type consistent" in text
    assert "option httpchk GET /ready" in text
    assert "shutdown-sessions" not in text  # a replica that is not ready finishes what it runs
