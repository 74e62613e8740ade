"""scripts/interleaved.py and the scripts on it: turns, answers and ratios of systems that only sleep or are made up."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from benched import contender

from piston.bench.child import Child
from piston.core.errors import EngineError

ROOT = Path(__file__).parents[2]
SYSTEMS = """
import time
from pathlib import Path

class Vector:
    def tolist(self):
        return [1.0, 2.0]

def open_system(path, options):
    seconds = float(path.name)
    def run(work):
        with Path(options["log"]).open("a") as log:
            log.write(f"{seconds} {work}\\n")
        if work == "fail":
            raise ValueError("no such work")
        print("libraries print too")
        time.sleep(seconds)
        return [Vector(), work, options["threads"]]
    return run

OPENERS = {"sleeps": open_system}
"""


@pytest.fixture
def interleaved(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("interleaved")


@pytest.fixture
def systems(tmp_path):
    """A script with OPENERS, and options for its systems."""
    (tmp_path / "systems.py").write_text(SYSTEMS)
    return str(tmp_path / "systems.py"), {"threads": 2, "log": str(tmp_path / "log")}


def sleeper(name, seconds):
    return contender(name, "sleeps", path=str(seconds), python=sys.executable)


def test_systems_take_turns_and_the_first_round_only_warms_up_and_answers(interleaved, systems, capfd):
    script, options = systems
    found = interleaved.measured(
        script, [sleeper("fast", 0.01), sleeper("slow", 0.04)], {"long": 1, "short": 3}, options, rounds=2
    )
    turn = ["0.01 long", "0.04 long", *["0.01 short"] * 3, *["0.04 short"] * 3]
    assert Path(options["log"]).read_text().splitlines() == turn * 3
    for name, seconds in (("fast", 0.01), ("slow", 0.04)):
        assert {work: len(times) for work, times in found[name].seconds.items()} == {"long": 2, "short": 2}
        assert found[name].median("long") >= seconds
        assert found[name].answers == {work: [[1.0, 2.0], work, 2] for work in ("long", "short")}
        assert found[name].peak_bytes > 5_000_000
    assert interleaved.ratio_of(found["fast"], found["slow"], "long").value > 1


def test_what_a_system_says_when_it_fails_is_told(interleaved, systems):
    script, options = systems
    with pytest.raises(EngineError, match=r"^slow \(0.01\) failed: ValueError: no such work"):
        interleaved.measured(script, [sleeper("slow", 0.01)], {"fail": 1}, options, rounds=1)


def test_the_far_side_needs_the_standard_library_alone(interleaved, systems):
    script, options = systems
    bare = contender("bare", "sleeps", path="0", python=sys._base_executable)
    with Child(bare, options, timeout=30, script=[interleaved.__file__, script]) as child:
        asked = {"work": "long", "calls": 1, "wants_answer": True}
        assert child.ask(asked, "did")["answer"] == [[1.0, 2.0], "long", 2]


def test_ratios_are_of_neighbouring_turns_with_their_goals(interleaved):
    drift = np.array([1.0, 2.0, 5.0, 1.5, 1.0, 3.0])
    found = {
        "bundle": interleaved.Found({"speech": (0.5 * drift).tolist()}),
        "one": interleaved.Found({"speech": (0.8 * drift).tolist()}),
        "other": interleaved.Found({"speech": (0.55 * drift).tolist()}),
    }
    lines = list(
        interleaved.ratio_lines(found, ["bundle"], {"one": 1.5, "other": 1.2, "bundle": None}, {"speech": "speed"})
    )
    assert lines[1:] == [
        "| speed | bundle | one | 1.60x [1.60, 1.60] | 1.5x | met |",
        "| speed | bundle | other | 1.10x [1.10, 1.10] | 1.2x | **missed** |",
        "| speed | bundle | bundle | 1.00x [1.00, 1.00] | - |  |",
    ]


def test_what_is_there_is_not_made_again(interleaved, tmp_path):
    target = tmp_path / "folder" / "made"
    make = [sys.executable, "-c", f"import pathlib; pathlib.Path({str(target)!r}).open('a').write('x')"]
    assert interleaved.made(target, make) == interleaved.made(target, make) == target
    assert target.read_text() == "x"


def test_a_translator_that_says_less_is_refused(interleaved, capsys):
    script = importlib.import_module("compare_translators")
    answers = {work: [["w3"] * 4] * batch for work, (batch, _) in script.SETTINGS.items()}
    short = answers | {"batch 8, 4 beams": [["w3"] * 4] * 7 + [["w3"] * 3]}
    script.check_lengths({"bundle": interleaved.Found(answers=answers)}, 4)
    with pytest.raises(SystemExit, match=r"^rival generated \[4, 4, 4, 4, 4, 4, 4, 3\] tokens \(batch 8, 4 beams\)"):
        script.check_lengths({"rival": interleaved.Found(answers=short)}, 4)


def test_tokens_in_common_end_at_the_first_that_differs(interleaved):
    script = importlib.import_module("compare_translators")
    work = "batch 8, greedy"
    one = interleaved.Found(answers={work: [["a", "b", "c"], ["a", "b", "c"]]})
    other = interleaved.Found(answers={work: [["a", "x", "c"], ["a", "b", "c"]]})
    assert script.in_common(one, one) == 3
    assert script.in_common(one, other) == 2


def test_clips_are_joined_until_they_last_long_enough(interleaved, tmp_path):
    script = importlib.import_module("compare_speech")
    wave = importlib.import_module("wave")
    for name, value in (("a", 1000), ("b", 2000)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(np.full(8000, value, "<i2").tobytes())
    (tmp_path / "said.tsv").write_text("a.wav\tone\nb.wav\ttwo\n")
    arguments = script.argparse.Namespace(audio=None, transcripts=tmp_path / "said.tsv", seconds=1.2, out=tmp_path)
    path, seconds, said, names = script.heard(arguments)
    assert (seconds, said, names) == (1.5, "one two one", "a.wav, b.wav, a.wav")
    samples = np.load(path)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples[::8000] * 32_768, [1000, 2000, 1000])
    arguments.audio = tmp_path / "b.wav"
    assert script.heard(arguments)[1:] == (0.5, "two", "b.wav")
