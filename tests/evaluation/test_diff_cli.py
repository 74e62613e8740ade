import json
from pathlib import Path

import jsonschema
import pytest
from toy_model import VOCAB_SIZE, answering, edit_manifest, ids_of

from piston.cli.main import main
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.scripted import ScriptedEngine

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/diff.json").read_text(encoding="utf-8"))
PROMPTS = "Q\nR\n"
BEFORE = answering((ids_of("Q"), ids_of("a red car")), (ids_of("R"), ids_of("yes")))
AFTER = answering((ids_of("Q"), ids_of("a blue car")), (ids_of("R"), ids_of("yes")))


@pytest.fixture
def compared(bundle, reference, tmp_path, monkeypatch, capsys):
    """compared(*words): exit status, stdout and stderr of `piston diff REFERENCE BUNDLE`."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def opened_at(path, spec, *, num_slots, capacity, options):
        script = {"reference": BEFORE, "bundle": AFTER}[path.parts[-3]]
        return ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=capacity)

    def run(*words):
        monkeypatch.setattr(OrtEngine, "open", opened_at)
        options = ("--data", tmp_path / "prompts.txt", "--answer-tokens", "12", *words)
        status = main(["diff", *(str(word) for word in (reference, bundle, *options))])
        return status, *capsys.readouterr()

    return run


def test_changed_answers_are_listed_word_by_word_and_equal_ones_are_not(compared):
    status, out, _ = compared()
    assert status == 0
    assert "1 of 2 records changed" in out
    assert "a [-red-]{+blue+} car" in out
    assert "yes" not in out


def test_json_has_every_change_and_the_figures(compared):
    found = json.loads(compared("--json")[1])
    jsonschema.validate(found, SCHEMA)
    assert (found["task"], found["num_records"], found["num_changed"]) == ("text-generation", 2, 1)
    assert found["figures"] == {"equal_answers": 0.5}
    (change,) = found["changes"]
    assert (change["record"], change["text"]) == (1, "Q")
    assert (change["before"], change["after"]) == ("a red car", "a blue car")


def test_the_page_marks_removed_and_added_words(compared, tmp_path):
    assert compared("--html", tmp_path / "diff.html")[0] == 0
    page = (tmp_path / "diff.html").read_text()
    assert "<del>red</del><ins>blue</ins>" in page
    assert "1 of 2" in page


def test_models_of_two_tasks_are_refused(compared, bundle):
    edit_manifest(bundle, lambda manifest: manifest.update(task="feature-extraction"))
    status, _, err = compared()
    assert status == 2
    assert "give two of one task" in err


def test_a_count_below_one_is_refused(compared):
    assert compared("--top", "0")[0] == 2
    assert "--top means nothing to bundles for text-generation" in compared("--top", "5")[2]
    assert "--limit is -1" in compared("--limit", "-1")[2]
