import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from toy_model import write_bundle

from piston.core.errors import Error
from piston.pipeline import child
from piston.pipeline.child import run_verb


def replace_command(monkeypatch, script):
    """Run a script instead of `piston`; the processes that were started."""
    real, started = subprocess.Popen, []

    def popen(command, **options):
        started.append(real([sys.executable, "-c", script], **options))
        return started[-1]

    monkeypatch.setattr(child.subprocess, "Popen", popen)
    return started


def test_a_command_gives_its_json_its_time_and_its_memory(tmp_path):
    write_bundle(tmp_path / "b")
    outcome = run_verb(["inspect", "--", "b"], tmp_path, True)
    assert (outcome.status, outcome.result["kind"]) == (0, "bundle")
    assert outcome.seconds > 0
    assert 5e6 < outcome.peak_bytes < 1e9


def test_memory_of_the_process_that_asks_is_not_the_commands(tmp_path):
    held = np.ones(40_000_000)
    write_bundle(tmp_path / "b")
    assert run_verb(["inspect", "--", "b"], tmp_path, True).peak_bytes < held.nbytes


def test_a_command_that_fails_ends_in_its_own_words(tmp_path):
    with pytest.raises(Error, match=r"`piston verify` failed: No manifest\.json in nowhere"):
        run_verb(["verify", "--", "nowhere"], tmp_path, True)


@pytest.mark.parametrize("variable", [("FORCE_COLOR", "1"), ("PISTON_LOG_FORMAT", "json")])
def test_its_own_words_are_found_in_colour_and_among_json_lines(tmp_path, monkeypatch, capsys, variable):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(*variable)
    with pytest.raises(Error, match=r"`piston verify` failed: No manifest\.json in nowhere"):
        run_verb(["verify", "--", "nowhere"], tmp_path, False)
    assert capsys.readouterr().err == ""


def test_json_lines_of_progress_stay_json_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PISTON_LOG_FORMAT", "json")
    script = "import sys; print('{\"phase\": \"a\"}', file=sys.stderr); print('plain', file=sys.stderr); print('{}')"
    replace_command(monkeypatch, script)
    run_verb(["inspect"], tmp_path, False)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {"phase": "a"}
    assert (second["level"], second["message"]) == ("info", "  plain")


def test_progress_is_passed_on_unless_quiet(tmp_path, capsys, monkeypatch):
    write_bundle(tmp_path / "b")
    script = "import sys; print('  phase', file=sys.stderr); print('{}')"
    replace_command(monkeypatch, script)
    run_verb(["inspect"], tmp_path, False)
    assert capsys.readouterr().err == "    phase\n"
    run_verb(["inspect"], tmp_path, True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("print('no json')", "printed no JSON object"),
        ("print('[]')", "printed no JSON object"),
        ("import sys; sys.exit(1)", "failed: exit status 1"),
    ],
)
def test_a_command_that_ends_otherwise_is_our_error(tmp_path, monkeypatch, script, said):
    replace_command(monkeypatch, script)
    with pytest.raises(Error, match=said):
        run_verb(["inspect"], tmp_path, True)


PARENT = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, time
from piston.pipeline.child import _die_with_parent
_die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
''', str(os.getpid())])
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child of a parent that was killed")
def test_a_child_dies_with_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _lives(pid):
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_ends_the_child_first(tmp_path, monkeypatch):
    started = replace_command(monkeypatch, "import time; time.sleep(60)")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "_relay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_verb(["inspect"], tmp_path, True)
    assert started[0].poll() == -signal.SIGTERM
