"""The near side of the protocol, against scripts that play the far side."""

import sys

import pytest
from benched import contender

from piston.bench import child as module
from piston.bench.child import Child
from piston.core.errors import EngineError

READY = 'print(\'{"event": "ready", "import_s": 0.25, "load_s": 0.5, "versions": {"engine": "2"}}\', flush=True)\n'
RAN = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    rows = [[7] * asked["gen_len"] for _ in asked["prompts"]]
    times = [0.1 * (index + 1) for index in range(asked["gen_len"])]
    ran = {"event": "ran", "times": times, "token_ids": rows, "parts": {}, "peak_bytes": 5}
    ran.update(CHANGES)
    print(json.dumps(ran), flush=True)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """started(script): a Child whose far side is that script."""
    opened = []

    def start(script, timeout=30.0, python=sys.executable):
        (tmp_path / "serve.py").write_text(script, encoding="utf-8")
        monkeypatch.setattr(module, "SERVE", tmp_path / "serve.py")
        opened.append(Child(contender("rival", "ct2", python=python), {"threads": 2}, timeout=timeout))
        return opened[-1]

    yield start
    for child in opened:
        child.close()


def test_what_the_far_side_tells_arrives(started):
    child = started(READY + "CHANGES = {}" + RAN)
    assert (child.import_s, child.load_s, child.versions) == (0.25, 0.5, {"engine": "2"})
    ran = child.run([[1, 2], [3, 4]], 3)
    assert ran.token_ids == ((7, 7, 7), (7, 7, 7))
    assert ran.times == pytest.approx((0.1, 0.2, 0.3))
    assert ran.peak_bytes == 5
    assert len(child.run([[1]], 1).times) == 1


def test_threads_of_the_turn_before_come_to_rest_first_but_a_start_is_measured_at_once(started, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    child = started(READY + "CHANGES = {}" + RAN)
    child.run([[1]], 1)
    assert slept == []
    child.run([[1]], 1)
    assert slept == [module.PAUSE]


@pytest.mark.parametrize(("is_ours", "seen"), [(True, "there"), (False, "")])
def test_our_own_python_keeps_our_paths_and_a_rivals_does_not(started, tmp_path, monkeypatch, is_ours, seen):
    (tmp_path / "paths").mkdir()
    (tmp_path / "paths/only_there.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "paths"))
    (tmp_path / "python").symlink_to(sys.executable)
    python = sys.executable if is_ours else str(tmp_path / "python")
    find = "import importlib.util as u; found = 'there' if u.find_spec('only_there') else ''\n"
    script = find + READY.replace('"2"', "\"' + found + '\"")
    assert started(script, python=python).versions == {"engine": seen}


def test_the_far_side_is_told_kind_path_and_options(started):
    child = started(READY)
    assert child._process.args[3:5] == ["ct2", "rival"]
    assert child._process.args[5] == '{"threads": 2, "target": null}'


@pytest.mark.parametrize(
    "changes",
    ['{"token_ids": [[7, 7]]}', '{"token_ids": []}', '{"times": [0.1]}', '{"token_ids": [[7, 7, 7], [7, 7, 7]]}'],
)
def test_other_counts_than_asked_for_are_no_measurement(started, changes):
    child = started(READY + f"CHANGES = {changes}" + RAN)
    with pytest.raises(EngineError, match="cannot be compared"):
        child.run([[1, 2]], 3)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import sys; sys.exit('no such model')", "ended without an answer; its last output: no such model"),
        ("print('hello')", "answered 'hello"),
        ('print(\'{"event": "ran"}\')', "answered 'ran' instead of 'ready'"),
        ('print(\'{"event": "error", "message": "out of memory"}\')', "failed: out of memory"),
    ],
)
def test_a_start_that_fails_tells_what_the_rival_said(started, script, told):
    with pytest.raises(EngineError, match=told):
        started(script)


def test_a_system_that_says_nothing_is_ended(started):
    with pytest.raises(EngineError, match=r"gave no answer in 0\.3 s"):
        started("import time; time.sleep(60)", timeout=0.3)


def test_a_system_that_dies_in_between_is_told(started):
    child = started(READY + "import sys; sys.stdin.readline(); sys.exit('killed')")
    with pytest.raises(EngineError, match="its last output: killed"):
        child.run([[1]], 1)


def test_a_python_that_is_not_there_is_told():
    with pytest.raises(EngineError, match="Cannot start rival"):
        Child(contender("rival", "ct2", python="/nowhere/python"), {}, timeout=5)
