import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from piston.serving.cli import add_arguments, per_bundle

SCRIPTED = Path(__file__).parents[1] / "support/scripted_piston.py"


def get(url, body=None):
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read().decode()


def until_running(address):
    end = time.monotonic() + 60
    while 'num_requests_running{model_name="bundle"} 1.0' not in get(f"{address}/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def serve(bundle):
    """serve(options...) -> (process, address) of a server that answers `hello you`, ten tokens a second."""
    processes = []

    def start(*options, reply="hello you", seconds="0.05"):
        words = [sys.executable, SCRIPTED, reply, seconds, "serve", bundle, "--port", "0", *options]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"PISTON_LOG_FORMAT": ""})
        processes.append(process)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"serving on (http://[0-9.:]+)", line):
                return process, found[1], lines
        raise AssertionError("".join(lines))

    yield start
    for process in processes:
        process.kill()
        process.wait(10)
        process.stderr.close()


def test_the_start_says_what_it_holds_and_promises(serve):
    _, address, lines = serve("--max-batch", "3", "--max-length", "64")
    assert "bundle: 3 rows x 64 tokens = 0 MB of cache" in lines[0]
    assert "engine ort-cpu" in lines[0]
    status, body = get(f"{address}/v1/models")
    assert (status, json.loads(body)["data"][0]["id"]) == (200, "bundle")


def test_options_are_for_all_bundles_or_for_one():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = "a b --max-batch a=2 --max-batch 3 --max-length b=64 --target a=ort-cpu:avx512 --threads 1"
    assert per_bundle(parser.parse_args(words.split()), ["a", "b"]) == {
        "a": {"max_batch": 2, "target": "ort-cpu:avx512", "threads": 1},
        "b": {"max_batch": 3, "max_length": 64, "threads": 1},
    }


def test_sigterm_finishes_what_runs_while_ready_says_no(serve):
    process, address, _ = serve(reply="hello no hello no hello no", seconds="0.2")
    body = {"model": "bundle", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(get(f"{address}/v1/chat/completions", body)))
    asking.start()
    until_running(address)
    process.send_signal(signal.SIGTERM)
    while get(f"{address}/ready")[0] == 200:
        assert process.poll() is None
    assert get(f"{address}/health")[0] == 200
    status, refused = get(f"{address}/v1/chat/completions", body)
    assert (status, json.loads(refused)["error"]["code"]) == (503, "shutting_down")
    asking.join(20)
    status, answer = answers[0]
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "hello no hello no hello no")
    assert process.wait(10) == 0


def test_what_does_not_finish_in_time_is_told_and_the_server_ends(serve):
    process, address, _ = serve("--shutdown-timeout", "0.1", reply="hello no " * 10, seconds="0.2")
    body = {"model": "bundle", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stream": True}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(get(f"{address}/v1/chat/completions", body)))
    asking.start()
    until_running(address)
    process.send_signal(signal.SIGTERM)
    asking.join(20)
    assert '"code":"shutting_down"' in answers[0][1]
    assert process.wait(10) == 0


@pytest.mark.parametrize("options", [[], ["--log-prompts"]])
def test_the_log_has_no_prompt_unless_asked(serve, options):
    process, address, _ = serve(*options)
    get(f"{address}/v1/chat/completions", {"model": "bundle", "messages": [{"role": "user", "content": "secret"}]})
    process.send_signal(signal.SIGTERM)
    log = process.stderr.read()
    assert "POST /v1/chat/completions 200" in log
    assert ("secret" in log) == bool(options)


@pytest.mark.parametrize("options", [[], ["--log-prompts"]])
def test_with_log_format_json_every_line_is_an_object_and_prompts_are_asked_for(serve, options):
    process, address, before = serve("--log-format", "json", *options)
    get(f"{address}/v1/chat/completions", {"model": "bundle", "messages": [{"role": "user", "content": "secret"}]})
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in [*before, *process.stderr]]
    (access,) = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert (access["method"], access["status"], access["ms"] > 0) == ("POST", 200, True)
    assert ("secret" in json.dumps(lines)) == bool(options)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-stall", "0"], "max-stall"),
        (["--max-queue-requests", "-1"], "max-queue-requests"),
        (["--shutdown-timeout", "nan"], "shutdown-timeout"),
        (["--api-key-file", "/nonexistent"], "API keys"),
        (["--host", "256.0.0.1"], "listen"),
        (["--port", "99999"], "listen"),
        (["--max-batch", "many"], "--max-batch is 'many'"),
        (["--max-batch", "other=3"], "there is no bundle other; there is bundle"),
        (["--max-length", "bundle=-1"], "--max-length is '-1'"),
    ],
)
def test_wrong_options_are_one_line_of_error(refused, bundle, words, named):
    status, message = refused("serve", bundle, *words)
    assert status == 2
    assert named in message


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(refused, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, message = refused("serve", tmp_path / "none", "--port", taken.getsockname()[1])
    assert status == 2
    assert "--port" in message


def test_two_bundles_of_one_name_are_refused(refused, bundle):
    status, message = refused("serve", bundle, bundle)
    assert (status, "NAME=DIR" in message) == (2, True)


def test_an_empty_key_file_is_refused(refused, bundle, tmp_path):
    (tmp_path / "keys").write_text("\n\n")
    status, message = refused("serve", bundle, "--api-key-file", tmp_path / "keys")
    assert (status, "no API key" in message) == (2, True)
