import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from toy_model import write_bundle

from piston.core.signals import Terminated, terminating

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def answering(tmp_path):
    """Start `piston ARGUMENTS`, whose engine says "hello you" slowly; gives the process once it has said something."""
    write_bundle(tmp_path / "bundle")
    started = []

    def start(*words, until, stdin=subprocess.DEVNULL, **variables):
        command = [sys.executable, SUPPORT / "scripted_piston.py", "hello you " * 7, "0.05", *words]
        process = subprocess.Popen(
            [str(word).replace("BUNDLE", str(tmp_path / "bundle")) for word in command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(SUPPORT), "NO_COLOR": "1"} | variables,
        )
        started.append(process)
        said = b""
        while until not in said:
            said += process.stdout.read(1) or pytest.fail(f"it only said {said!r}")
        return process, said

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process, said):
    out, err = process.communicate(timeout=20)
    return process.returncode, (said + out).decode(), err.decode()


def test_sigterm_ends_an_answer_with_what_was_said_and_status_143(answering):
    process, said = answering("run", "BUNDLE", "--chat", "--prompt", "hi", "--max-tokens", "60", until=b"hello")
    process.terminate()
    status, out, err = ended(process, said)
    assert status == 143
    assert out.startswith("hello")
    assert out.endswith("\n")
    assert len(out) < len("hello you " * 7)
    report, last = err.splitlines()
    assert "ended by an interrupt]" in report
    assert last == "terminated"


def test_sigterm_ends_a_chat_and_not_only_its_answer(answering):
    read, write = os.pipe()
    os.write(write, b"hi\nand again\n")
    process, said = answering("chat", "BUNDLE", "--max-tokens", "60", until=b"hello", stdin=read)
    process.terminate()
    status, out, err = ended(process, said)
    os.close(write)
    assert status == 143
    assert out.count("hello you") < 7
    assert err.endswith("[stopped]\nterminated\n")


def test_with_json_logs_every_line_of_stderr_is_an_object(answering):
    process, said = answering(
        "run", "BUNDLE", "--chat", "--prompt", "hi", "--max-tokens", "60", until=b"hello", PISTON_LOG_FORMAT="json"
    )
    process.terminate()
    _, _, err = ended(process, said)
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[-1]["message"] == "terminated"
    assert {line["level"] for line in lines} == {"info"}


def test_a_second_sigterm_does_not_disturb_the_end():
    def ending():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with terminating(), pytest.raises(Terminated):
        ending()


def test_the_handler_is_gone_afterwards():
    with terminating():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_somebody_else_stays(monkeypatch):
    def theirs(*_):
        return None

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with terminating():
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_may_run_commands_too():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(terminating().__enter__()))
    thread.start()
    thread.join()
    assert seen == [None]
