import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benched import OPTIONS, noisy_runs, system_of
from hypothesis import given
from hypothesis import strategies as st

from piston.bench.baseline import read_reference
from piston.bench.fingerprint import take_fingerprint
from piston.bench.metrics import of_run, summary
from piston.bench.reading import report_from
from piston.bench.report import Measured, Report, Run
from piston.bench.workload import Setting
from piston.core.errors import MisuseError

PATH = Path("base.json")
REPORT = Report(
    machine=take_fingerprint(2),
    options=OPTIONS,
    systems=(system_of(noisy_runs(np.random.default_rng(0), 3)),),
    piston="1",
    date="today",
)


def data():
    return json.loads(json.dumps(REPORT.to_json()))


def test_a_report_survives_being_written_and_read():
    assert report_from(data(), PATH) == REPORT


SPOKEN = {"encode": 0.5, "audio": 20.0, "tokens": 9.0}
TIMES = (1.0, 2.0)
SETTINGS = {
    "speech": (
        Setting(1, 1, 0, task="automatic-speech-recognition", audio=20.0),
        Run(prompt_len=1, times=TIMES, parts=SPOKEN),
    ),
    "beams": (
        Setting(1, 8, 2, task="text2text-generation", num_beams=4),
        Run(prompt_len=8, times=TIMES, parts={"encode": 0.5}),
    ),
}


def of_setting(name, **changed):
    """The report of a run at a setting, as JSON."""
    setting, run = SETTINGS[name]
    measured = Measured(setting=setting, runs=(run,), metrics=summary([of_run(run, setting)], 0))
    system = dataclasses.replace(REPORT.systems[0], settings=(measured,))
    found = json.loads(json.dumps(dataclasses.replace(REPORT, systems=(system,)).to_json()))
    found["systems"][0]["settings"][0]["runs"][0]["parts"] |= changed
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_encoder_decoders_survive_too(name):
    (found,) = report_from(of_setting(name), PATH).systems
    assert (found.settings[0].setting, found.settings[0].runs[0]) == SETTINGS[name]


@pytest.mark.parametrize(
    ("name", "changed"),
    [("speech", {"audio": 0}), ("speech", {"encode": 2.0}), ("speech", {"tokens": -1}), ("beams", {"encode": 0})],
)
def test_impossible_figures_of_encoder_decoders_are_refused(name, changed):
    with pytest.raises(MisuseError, match="is not a report"):
        report_from(of_setting(name, **changed), PATH)


def test_another_schema_is_named():
    with pytest.raises(MisuseError, match="has schema 2, but this Piston reads 1"):
        report_from(data() | {"schema": 2}, PATH)


def places(value, path=()):
    """Paths of every value in a document."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from places(item, (*path, key))


JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none(), max_size=2))
NEEDED = [path for path in places(data()) if path and path[0] not in {"ratios", "gates", "profile", "baseline"}]


@given(place=st.sampled_from(NEEDED), junk=JUNK)
def test_a_report_with_anything_anywhere_is_read_or_refused_in_one_line(place, junk):
    document = data()
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = junk
    told = ""
    try:
        report_from(document, PATH)
    except MisuseError as problem:
        told = str(problem)
    assert "\n" not in told


@pytest.mark.parametrize("place", [path for path in NEEDED if path[-1] == "times"])
@pytest.mark.parametrize("times", [[], [1.0], [2.0] * 16, [3.0, 1.0, *range(4, 18)], [float("nan")] * 16])
def test_times_that_cannot_be_are_refused(place, times):
    document = data()
    target = document
    for key in place[:-1]:
        target = target[key]
    target["times"] = times
    with pytest.raises(MisuseError, match="not a report"):
        report_from(document, PATH)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 1}', "[" * 100_000])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "base.json").write_text(text, encoding="utf-8")
    with pytest.raises(MisuseError, match="--baseline"):
        read_reference(tmp_path / "base.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MisuseError, match="Cannot read --baseline"):
        read_reference(tmp_path / "none.json")
