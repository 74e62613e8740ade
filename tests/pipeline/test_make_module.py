"""`piston make` from a model directory that `export_module` wrote, each verb run in this process."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from modules import Perceptron, normal

from piston.cli.main import main
from piston.core.bundle.golden import FILE_NAME, GoldenByTarget
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.export import export_module
from piston.pipeline.cache_key import digest_of_files, files_of_checkpoint
from piston.pipeline.child import Outcome
from piston.pipeline.lock import compare, read_lock
from piston.pipeline.make import MakeOptions, make
from piston.pipeline.recipe import read_recipe

RECIPE = """
[checkpoint]
source = "model"
sha256 = "{sha256}"

[calibrate]
scheme = "w8a8"
data = ["data.npz"]
require = ["error<=5%"]

[build]
target = ["ort-cpu"]

[bench]
repeats = 1
warmup = 0

[gates]
require = ["int8>=100%", "bench.latency<=10s"]

[output]
bundle = "bundle"
"""


def run(words, directory, quiet):
    printed = io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
        status = main([words[0], "--json", "--quiet", *words[1:]])
    return Outcome(status=status, result=json.loads(printed.getvalue() or "{}"), seconds=0.1, peak_bytes=1, error="")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("make")
    export_module(Perceptron(), {"x": normal(2, 12)}, place / "model", dynamic_shapes={"x": {0: "batch"}})
    np.savez(place / "data.npz", x=normal(60, 12, seed=7).numpy())
    sha256 = digest_of_files(files_of_checkpoint(place / "model"))
    (place / "recipe.toml").write_text(RECIPE.format(sha256=sha256))
    return place


def made(place, **options):
    path = place / "recipe.toml"
    return make(read_recipe(path), path, MakeOptions(cache_dir=place / "cache", run=run, quiet=True, **options))


def test_a_module_goes_from_its_model_directory_to_a_gated_bundle_and_again_to_the_same(place):
    report = made(place)
    assert [stage.name for stage in report.stages] == ["calibrate", "build", "verify", "bench"]
    assert report.is_met
    assert report.values["int8"] == 1
    assert Manifest.read(place / "bundle").task == "module"
    assert made(place, locked=True).lock.equality == "bit-equal"


def test_outputs_that_moved_are_not_numerically_equal(place):
    made(place)
    lock = read_lock(place / "piston.lock")
    other = dataclasses.replace(lock, bundle={}, graph={})
    assert compare(lock, other, place).equality == "numerically-equal"
    golden = lock.answers["ort-cpu"]
    moved = tuple(
        dataclasses.replace(example, values={name: tuple(2 * value for value in values) for name, values in
                                             example.values.items()})
        for example in golden.examples
    )  # fmt: skip
    answers = {"ort-cpu": dataclasses.replace(golden, examples=moved)}
    assert compare(lock, dataclasses.replace(other, answers=answers), place).equality == "none"
    # Nothing was compared where there is nothing to compare.
    empty = dataclasses.replace(lock, answers={})
    assert compare(empty, dataclasses.replace(other, answers={}), place).equality == "none"


def test_a_bundle_without_golden_answers_is_locked_all_the_same(place):
    from piston.pipeline.lock import lock_of
    from piston.pipeline.plan import locate

    made(place)
    bundle = Manifest.read(place / "bundle")
    files = {name: record for name, record in bundle.files.items() if name != FILE_NAME}
    recipe = read_recipe(place / "recipe.toml")
    lock = lock_of(
        dataclasses.replace(bundle, files=files),
        Manifest.read(place / "model"),
        place / "elsewhere",
        locate(recipe, place),
        (),
    )
    assert (lock.answers, lock.tokenizer) == ({}, None)
    assert GoldenByTarget.read(place / "bundle").engines["ort-cpu"].examples


def test_options_of_an_export_that_is_not_made_are_refused(place, tmp_path):
    path = place / "exporting.toml"
    path.write_text((place / "recipe.toml").read_text() + '\n[export]\ndtype = "fp32"\n')
    with pytest.raises(MisuseError, match=r"is a model directory, which is exported already; leave \[export\] out"):
        make(read_recipe(path), path, MakeOptions(cache_dir=tmp_path, run=run, quiet=True))


def test_a_stage_that_measures_nothing_of_the_task_is_refused_before_any_work(place):
    path = place / "evaluated.toml"
    path.write_text((place / "recipe.toml").read_text().replace("[bench]", '[eval]\ndata = "data.npz"\n\n[bench]'))
    ran = []
    options = MakeOptions(cache_dir=place / "cache", run=lambda *words: ran.append(words), quiet=True)
    with pytest.raises(MisuseError, match=r"has \[eval\], and `piston eval` measures nothing of module; leave it out"):
        make(read_recipe(path), path, options)
    assert ran == []
