import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import EXPECTED, Commands, write_recipe
from toy_model import edit_manifest, write_bundle

from piston.core.bundle.golden import Golden, GoldenAnswer, GoldenExample
from piston.core.bundle.manifest import Manifest
from piston.core.errors import Error, MisuseError, OutputExistsError
from piston.pipeline import cache as cache_module
from piston.pipeline.cache import Cache
from piston.pipeline.make import MakeOptions, make
from piston.pipeline.plan import locate, plan
from piston.pipeline.recipe import read_recipe
from piston.runtime.verify import Mismatch
from piston.runtime.verify_outputs import OutputMismatch

ALL = ["export", "calibrate", "build", "verify", "eval"]


class Place:
    """A recipe with its cache and its commands."""

    def __init__(self, directory):
        self.directory, self.cache, self.commands = directory, directory / "cache", Commands()
        self.recipe = write_recipe(directory)
        self.bundle = directory / "out/bundle"

    def make(self, **options):
        """Run; the report, and what was not taken from the cache."""
        self.commands.calls.clear()
        made = MakeOptions(cache_dir=self.cache, run=self.commands, quiet=True, **options)
        report = make(read_recipe(self.recipe), self.recipe, made)
        assert [stage.name for stage in report.stages if not stage.is_cached] == [
            name for name in ALL if name in self.commands.calls
        ]
        return report

    def edit(self, old, new):
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))

    def entry(self, stage):
        (directory,) = [path for path in (self.cache / stage).iterdir() if not path.name.startswith(".")]
        return directory


def bench_stage(place):
    recipe = read_recipe(place.recipe)
    stages = plan(recipe, place.directory, locate(recipe, place.directory))
    return next(stage for stage in stages if stage.name == "bench")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "place")


def test_a_first_run_runs_every_stage_once_and_publishes(place):
    report = place.make()
    assert place.commands.calls == ALL
    assert (report.is_met, report.is_published) == (True, True)
    assert Manifest.read(place.bundle).kind == "bundle"
    assert report.values["eval.ppl_change"] == pytest.approx(0.01)
    assert report.values["int8"] == 0.96


def test_a_second_run_does_nothing(place):
    place.make()
    before = (place.bundle / "manifest.json").stat()
    report = place.make()
    assert place.commands.calls == []
    assert report.is_published
    assert (place.bundle / "manifest.json").stat().st_ino == before.st_ino


def test_a_bundle_that_was_damaged_or_removed_is_published_again_from_the_cache(place):
    place.make()
    (place.bundle / "ort-cpu/model.onnx").write_bytes(b"damaged")
    place.make()
    Manifest.read(place.bundle).verify(place.bundle)
    assert place.commands.calls == []


def test_a_changed_gate_runs_nothing_and_is_judged(place):
    place.make()
    place.edit("eval.ppl <= 2%", "eval.ppl <= 0.5%")
    report = place.make()
    assert place.commands.calls == []
    assert [gate.is_met for gate in report.gates] == [True, False]
    assert "1.00%" in report.gates[1].message


def test_a_gate_that_is_not_met_publishes_nothing_and_leaves_the_old(place):
    place.make()
    old = (place.bundle / "manifest.json").read_bytes()
    place.commands.change, place.commands.engine = 0.5, b"other"
    (place.directory / "rows.txt").write_text("other rows")
    report = place.make()
    assert (report.is_met, report.is_published) == (False, False)
    assert (place.bundle / "manifest.json").read_bytes() == old


def test_changed_calibration_data_runs_from_there(place):
    place.make()
    (place.directory / "rows.txt").write_text("other rows")
    place.make()
    assert place.commands.calls == ["calibrate", "build", "verify", "eval"]


def test_a_bundle_as_baseline_is_measured_in_turns_with_the_new_one_and_a_file_is_not(place):
    place.edit("[gates]", '[bench]\nbaseline = "old"\nrepeats = 4\n\n[gates]')
    (place.directory / "old").write_text("{}")
    alone = bench_stage(place)
    assert alone.options == ("--repeats=4",)
    (place.directory / "old").write_text("{ }")
    assert bench_stage(place).key == alone.key
    (place.directory / "old").unlink()
    (place.directory / "old").mkdir()
    write_bundle(place.directory / "old")
    beside = bench_stage(place)
    assert beside.options == ("--against=piston:old", "--repeats=4")
    edit_manifest(place.directory / "old", lambda data: data["made_by"].update(by="another"))
    assert bench_stage(place).key != beside.key


def test_what_cannot_be_compared_with_is_refused_before_any_work(place):
    place.edit("[gates]", '[bench]\nbaseline = "old"\n\n[gates]')
    with pytest.raises(MisuseError, match="old"):
        place.make()
    (place.directory / "old/bin").mkdir(parents=True)
    (place.directory / "old/bin/python").write_text("")
    with pytest.raises(MisuseError, match="virtual environment"):
        place.make()
    assert place.commands.calls == []


def test_a_changed_option_runs_from_its_stage(place):
    place.make()
    place.edit('data = "held_out.txt"', 'data = "held_out.txt"\nstride = 128')
    place.make()
    assert place.commands.calls == ["eval"]
    place.edit('target = ["ort-cpu"]', 'target = ["ort-cpu"]\nmax_length = 64')
    place.make()
    assert place.commands.calls == ["build", "verify", "eval"]


def test_other_versions_or_other_code_run_the_stage_again(place, monkeypatch):
    place.make()
    monkeypatch.setattr("piston.pipeline.plan.code_of", lambda verb: "other" if verb == "build" else "code")
    place.make()
    monkeypatch.setattr("piston.pipeline.plan.tools_of", lambda verb: {"x": "2"} if verb == "eval" else {})
    place.commands.calls.clear()
    place.make()
    assert "eval" in place.commands.calls


def test_results_of_machines_are_measured_on_each(place, monkeypatch):
    place.make()
    monkeypatch.setattr("piston.pipeline.plan.machine", lambda: {"cpu": "another"})
    place.make()
    assert place.commands.calls == ["verify", "eval"]


def test_the_cache_may_move_with_the_recipe(place, tmp_path):
    place.make()
    place.directory.rename(tmp_path / "elsewhere")
    moved = Place(tmp_path / "elsewhere")
    moved.make()
    assert moved.commands.calls == []


def test_another_checkpoint_than_the_recipes_is_refused(place):
    (place.directory / "model.gguf").write_text("other weights")
    with pytest.raises(Error, match="the recipe states"):
        place.make()
    assert place.commands.calls == []


def test_a_checkpoint_elsewhere_is_taken_by_its_hash(place, tmp_path):
    place.make()
    (tmp_path / "other").mkdir()
    (place.directory / "model.gguf").rename(tmp_path / "other/model.gguf")
    place.make(checkpoint=str(tmp_path / "other/model.gguf"))
    assert place.commands.calls == []
    with pytest.raises(MisuseError, match="does not exist; correct checkpoint"):
        place.make()


def hub(place, revision):
    sha256 = next(line for line in place.recipe.read_text().split("\n") if line.startswith("sha256"))
    place.edit(sha256, f'revision = "{revision}"')
    place.edit('source = "model.gguf"', 'source = "org/model"')


def test_a_branch_of_a_hub_id_may_move_and_is_refused(place):
    hub(place, "main")
    with pytest.raises(MisuseError, match="is not a commit"):
        place.make()


def test_a_hub_id_at_a_commit_is_left_to_the_export(place, monkeypatch):
    hub(place, "a" * 40)
    seen = []
    monkeypatch.setattr(place.commands, "_model", lambda out, *_: seen.append(out))
    with pytest.raises(FileNotFoundError):  # the stand-in reads no hub
        place.make()
    assert place.commands.calls == ["export"]
    with pytest.raises(MisuseError, match="leave it out"):
        place.make(checkpoint="model.gguf")


def damage_file(entry):
    next(path for path in sorted((entry / "output").rglob("*")) if path.is_file()).write_bytes(b"damaged")


def flip_byte(entry):
    path = next(path for path in sorted((entry / "output").rglob("*")) if path.is_file())
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def damage_record(entry):
    text = (entry / "entry.json").read_text()
    (entry / "entry.json").write_text(text.replace('"peak_bytes": 1000', '"peak_bytes": 1001'))


def cut_record(entry):
    (entry / "entry.json").write_text("{")


def add_file(entry):
    (entry / "output/more").write_text("")


def remove_file(entry):
    next(path for path in sorted((entry / "output").rglob("*")) if path.is_file()).unlink()


@pytest.mark.parametrize("damage", [damage_file, flip_byte, damage_record, cut_record, add_file, remove_file])
def test_a_damaged_entry_that_is_needed_is_made_again(place, damage, capsys):
    place.make()
    old = (place.bundle / "ort-cpu/model.onnx").read_bytes()
    damage(place.entry("build"))
    (place.bundle / "ort-cpu/model.onnx").write_bytes(b"damaged")
    place.make()
    assert place.commands.calls == ["build"]
    assert (place.bundle / "ort-cpu/model.onnx").read_bytes() == old
    assert "is damaged" in capsys.readouterr().err


def test_a_stage_that_fails_ends_the_run_in_its_words_and_is_tried_again(place):
    place.commands.failing = "build"
    with pytest.raises(Error, match="`piston build` failed: it is broken"):
        place.make()
    assert not place.bundle.exists()
    place.commands.failing = None
    place.make()
    assert place.commands.calls == ["build", "verify", "eval"]


@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_is_interrupted_leaves_nothing_half_made(place, stage, problem):
    place.commands.raising = (stage, problem)
    with pytest.raises((KeyboardInterrupt, Error)):
        place.make()
    assert not place.bundle.exists()
    assert not list(place.cache.rglob("*.part"))
    place.commands.raising = None
    place.make()
    assert place.commands.calls == ALL[ALL.index(stage) :]


def test_a_bundle_that_does_not_verify_is_not_published_and_is_asked_again(place):
    place.commands.passed = False
    report = place.make()
    assert (report.gates[0].is_met, report.is_published) == (False, False)
    place.commands.passed = True
    assert place.make().is_published
    assert place.commands.calls == ["verify"]


@pytest.mark.parametrize("gates", ['require = [\n  "eval.ppl <= 2%",\n]', ""])
def test_a_bundle_that_does_not_verify_is_not_published_where_no_gate_names_verify(place, gates):
    place.edit('require = [\n  "verify",\n  "eval.ppl <= 2%",\n]', gates)
    place.commands.passed = False
    report = place.make()
    assert (report.gates[0].expression, report.gates[0].is_met, report.is_published) == ("verify", False, False)
    assert not place.bundle.exists()


def test_the_report_says_of_a_mismatch_what_verify_says(place):
    place.commands.passed = False
    place.commands.mismatches = (
        OutputMismatch(what="engine", prompt="a", distance=None, allowed=0.05),
        Mismatch(
            what="engine", prompt="b", position=2, expected_id=3, got_id=4, expected_text="x", got_text="y", margin=0.5
        ),
    )
    assert place.make().mismatches == tuple(map(str, place.commands.mismatches))
    assert "NaN or infinite where the recorded one is not" in str(place.commands.mismatches[0])


def test_verify_is_left_out_where_it_is_skipped_by_name(place):
    place.edit('  "verify",\n', "")
    place.edit("[gates]", '[gates]\nskip = ["verify"]')
    place.commands.passed = False
    report = place.make()
    assert place.commands.calls == ["export", "calibrate", "build", "eval"]
    assert [gate.expression for gate in report.gates] == ["eval.ppl <= 2%"]
    assert report.is_published


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('bundle = "out/bundle"', 'bundle = "out/bundle"\nlock = "recipe.toml"', "would replace"),
        ('bundle = "out/bundle"', 'bundle = "out/bundle"\nlock = "model.gguf"', "would replace"),
        ('bundle = "out/bundle"', 'bundle = "out/bundle"\nlock = "rows.txt"', "is not a lock file"),
        ('bundle = "out/bundle"', 'bundle = "out/bundle"\nlock = "out/bundle/lock"', "is inside the bundle"),
        ('bundle = "out/bundle"', 'bundle = "."', "is not a bundle"),
        ('bundle = "out/bundle"', 'bundle = "model.gguf"', "is not a bundle"),
    ],
)
def test_no_output_replaces_what_is_read_or_what_piston_did_not_write(place, old, new, said):
    place.edit(old, new)
    before = {path.name: path.read_bytes() for path in place.directory.iterdir() if path.is_file()}
    (place.directory / "out").mkdir()
    with pytest.raises(MisuseError, match=said):
        place.make()
    assert {path.name: path.read_bytes() for path in place.directory.iterdir() if path.is_file()} == before
    assert place.commands.calls == []


def test_a_checkpoint_that_is_a_link_to_a_blob_keeps_its_name(place):
    (place.directory / "blob").mkdir()
    (place.directory / "model.gguf").rename(place.directory / "blob/0123")
    (place.directory / "model.gguf").symlink_to("blob/0123")
    assert place.make().checkpoint == str(place.directory / "model.gguf")


def test_verify_that_cannot_run_names_how_to_leave_it_out(place):
    place.commands.failing = "verify"
    with pytest.raises(Error, match=r'skip = \["verify"\] in \[gates\]'):
        place.make()


def test_a_bundle_that_contains_the_checkpoint_is_not_replaced(place):
    place.make()
    (place.directory / "model.gguf").rename(place.bundle / "model.gguf")
    with pytest.raises(MisuseError, match="would replace"):
        place.make(checkpoint=str(place.bundle / "model.gguf"))
    assert (place.bundle / "model.gguf").is_file()


@pytest.mark.parametrize("name", ["index.html", "report.json"])
def test_a_report_replaces_no_file_that_no_run_wrote(place, name):
    page = place.directory / "site" / name
    page.parent.mkdir()
    page.write_text('{"mine": 1}')
    with pytest.raises(OutputExistsError, match=f"holds {name}, which `piston make` did not write"):
        place.make(pages=page.parent)
    assert page.read_text() == '{"mine": 1}'
    page.unlink()
    place.make(pages=page.parent)
    place.make(pages=page.parent)  # its own report is replaced


@pytest.mark.parametrize("pages", ["out/bundle/report", "out/bundle"])
def test_a_report_within_the_bundle_is_refused(place, pages):
    with pytest.raises(MisuseError, match="is inside the bundle"):
        place.make(pages=place.directory / pages)


def test_an_entry_that_another_run_removes_during_eviction_costs_no_report(place, monkeypatch):
    place.make()
    (place.directory / "rows.txt").write_text("other rows")
    read = cache_module.read_entry

    def read_and_gone(directory):
        entry = read(directory)
        if entry is not None and directory not in used and directory.parent.name == "calibrate" and evicting:
            shutil.rmtree(directory)
        return entry

    used, evicting = set(), []
    evict = cache_module.Cache.evict

    def begin(cache):
        used.update(cache.used)
        evicting.append(True)
        return evict(cache)

    monkeypatch.setattr(cache_module, "read_entry", read_and_gone)
    monkeypatch.setattr(cache_module.Cache, "evict", begin)
    assert place.make(cache_bytes=1).is_published


def test_what_a_run_uses_is_not_evicted_by_another(place):
    cache = Cache(place.cache, 1)
    place.make()
    entry = place.entry("build")
    with cache.locked("build", entry.name):
        assert cache.find("build", entry.name) is not None
    other = Cache(place.cache, 1)
    other.evict()
    assert entry.is_dir()
    cache.release()
    other.evict()
    assert not entry.exists()


@pytest.mark.parametrize("name", ["file", "manifest.json"])
def test_what_is_no_bundle_is_never_replaced(place, name):
    place.bundle.mkdir(parents=True)
    (place.bundle / name).write_text("mine")
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        place.make()
    assert place.commands.calls == []


def test_the_cache_stays_below_its_size_and_drops_what_was_not_used_for_longest(place):
    place.make()
    (place.directory / "rows.txt").write_text("other rows")
    place.make(cache_bytes=1)
    kept = [path.parent.parent.name for path in place.cache.glob("*/*/entry.json")]
    assert sorted(kept) == sorted(ALL)
    place.make()
    assert place.commands.calls == []


def test_a_locked_run_without_a_lock_is_misuse(place):
    with pytest.raises(MisuseError, match=r"piston\.lock does not exist"):
        place.make(locked=True)


def test_a_locked_run_makes_everything_anew_and_is_bit_equal(place):
    place.make()
    lock = (place.directory / "piston.lock").read_bytes()
    report = place.make(locked=True)
    assert place.commands.calls == ALL
    assert (report.lock.equality, report.lock.changed, report.is_published) == ("bit-equal", (), True)
    assert (place.directory / "piston.lock").read_bytes() == lock
    assert not list(place.cache.glob(".*"))


def test_other_engines_of_the_same_graph_are_graph_equal(place):
    place.make()
    place.commands.engine = b"other tactics"
    report = place.make(locked=True)
    assert (report.lock.equality, report.is_published) == ("graph-equal", True)
    assert any(change.startswith("bundle.ort-cpu/model.onnx") for change in report.lock.changed)


def with_answers(*token_ids, margins=(2.0, 1.0)):
    answer = EXPECTED.answers[0]
    changed = GoldenAnswer(prompt=answer.prompt, prompt_ids=answer.prompt_ids, token_ids=token_ids, margins=margins)
    return Golden(answers=(changed,), noise=0.0, by="engine")


def test_another_graph_with_the_same_answers_is_numerically_equal(place):
    place.make()
    place.commands.graph, place.commands.expected = b"other graph", with_answers(3, 4, margins=(2.1, 0.9))
    assert place.make(locked=True).lock.equality == "numerically-equal"


def test_tokens_too_close_to_tell_may_differ_and_others_may_not(place):
    place.commands.expected = with_answers(3, 4, margins=(2.0, 0.005))
    place.make()
    place.commands.graph, place.commands.expected = b"other graph", with_answers(3, 5, margins=(2.0, 0.004))
    assert place.make(locked=True).lock.equality == "numerically-equal"
    place.commands.expected = with_answers(5, 4, margins=(2.0, 0.005))
    report = place.make(locked=True)
    assert (report.lock.equality, report.is_met, report.is_published) == ("none", False, False)


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("values", "equality"),
    [
        ((1.0, -INFINITE, 2.00001), "numerically-equal"),
        ((1.0, INFINITE, 2.0), "none"),
        ((1.0, -INFINITE), "none"),
        ((1.0, -3.0, 2.0), "none"),
        ((1.0, -INFINITE, 2.5), "none"),
    ],
)
def test_outputs_of_another_graph_are_compared_with_their_infinities(place, values, equality):
    def with_outputs(*numbers):
        return Golden(examples=(GoldenExample(values={"scores": numbers}),), noise=0.0, by="engine")

    place.commands.expected = with_outputs(1.0, -INFINITE, 2.0)
    place.make()
    place.commands.graph, place.commands.expected = b"other graph", with_outputs(*values)
    assert place.make(locked=True).lock.equality == equality


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place: (place.directory / "rows.txt").write_text("other"), "The data"),
        (lambda place: place.edit('scheme = "w8a8"', 'scheme = "w8a8"\nno_smooth = true'), "The options"),
    ],
)
def test_a_locked_run_of_other_inputs_is_refused_before_any_work(place, change, said):
    place.make()
    change(place)
    with pytest.raises(Error, match=said):
        place.make(locked=True)
    assert place.commands.calls == []


def test_a_changed_gate_leaves_the_lock_as_it_is(place):
    place.make()
    lock = (place.directory / "piston.lock").stat().st_mtime_ns
    place.edit("eval.ppl <= 2%", "eval.ppl <= 3%")
    place.make()
    assert (place.directory / "piston.lock").stat().st_mtime_ns == lock
    assert place.make(locked=True).lock.equality == "bit-equal"


def test_a_lock_that_is_none_is_misuse(place):
    place.make()
    for text in ("{", "[]", json.dumps({"schema": 2})):
        (place.directory / "piston.lock").write_text(text)
        with pytest.raises(MisuseError, match="is not a lock file"):
            place.make(locked=True)


SLOW = """
import sys, time
from pathlib import Path
from making import Commands
from piston.core.bundle.golden import Golden, GoldenAnswer
from piston.pipeline import cache as cache_module
from piston.pipeline.cache import Cache
from piston.pipeline.make import MakeOptions, make
from piston.pipeline.recipe import read_recipe
commands, recipe = Commands(), Path(sys.argv[1])
def slow(words, directory, quiet):
    time.sleep(0.15)
    return commands(words, directory, quiet)
make(read_recipe(recipe), recipe, MakeOptions(cache_dir=recipe.parent / "cache", run=slow, quiet=True))
print(*commands.calls)
"""


def test_of_two_runs_on_one_cache_each_stage_is_made_by_one(place):
    paths = [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", SLOW, str(place.recipe)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted(word for out, _ in outputs for word in out.split()) == sorted(ALL)
    Manifest.read(place.bundle).verify(place.bundle)
