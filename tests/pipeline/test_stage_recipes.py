from pathlib import Path

import pytest
from staged import write_staged_recipe

from piston.core.errors import Error, MisuseError
from piston.pipeline.recipe import read_recipe
from piston.pipeline.stage_recipes import jobs_of

OUT = Path("out")


def test_every_target_is_built_on_its_own_from_what_was_calibrated(tmp_path):
    jobs = jobs_of([write_staged_recipe(tmp_path / "a", targets=("ort-cpu", "ort-cpu:avx512"))])
    assert [(job.name, job.reads) for job in jobs] == [
        ("export model.gguf", None),
        ("calibrate w8a8", "export model.gguf"),
        ("build w8a8 ort-cpu", "calibrate w8a8"),
        ("build w8a8 ort-cpu:avx512", "calibrate w8a8"),
    ]
    assert [job.options for job in jobs if job.verb == "build"] == [("--target=ort-cpu",), ("--target=ort-cpu:avx512",)]


def test_what_is_timed_is_what_make_would_run(tmp_path):
    export, calibrate, build = jobs_of([write_staged_recipe(tmp_path / "a")])
    checkpoint = str((tmp_path / "a/model.gguf").resolve())
    assert export.words(OUT, None) == ["export", "--output=out/model", "--", checkpoint]
    assert calibrate.words(OUT, Path("m")) == [
        *("calibrate", "--data=rows.txt", "--scheme=w8a8", "--output=out/model", "--", "m")
    ]
    assert build.words(OUT, Path("q")) == ["build", "--target=ort-cpu", "--output=out/bundle", "--", "q"]
    assert {job.directory for job in (export, calibrate, build)} == {tmp_path / "a"}


def test_tensorrt_is_built_without_a_cache_that_would_answer_the_second_time(tmp_path):
    (build,) = jobs_of([write_staged_recipe(tmp_path / "a", targets=("tensorrt-rtx:sm89",))])[2:]
    assert "--no-cache" in build.words(OUT, Path("q"))


def test_a_recipe_without_calibration_builds_the_export(tmp_path):
    def plain(text):
        return text.replace('[calibrate]\nscheme = "w8a8"\ndata = ["rows.txt"]\n', "")

    jobs = jobs_of([write_staged_recipe(tmp_path / "a", "float", edit=plain)])
    assert [(job.name, job.reads) for job in jobs][1:] == [("build float ort-cpu", "export model.gguf")]


def test_an_export_that_recipes_share_is_run_once(tmp_path):
    paths = [write_staged_recipe(tmp_path / "a", name) for name in ("one", "two")]
    names = [job.name for job in jobs_of(paths)]
    assert names == [
        *("export model.gguf", "calibrate one", "build one ort-cpu"),
        *("calibrate two", "build two ort-cpu"),
    ]


def test_exports_with_other_options_are_not_shared(tmp_path):
    def halved(text):
        return text.replace("[calibrate]", '[export]\ndtype = "fp16"\n\n[calibrate]', 1)

    paths = [write_staged_recipe(tmp_path / "a", "one"), write_staged_recipe(tmp_path / "a", "two", edit=halved)]
    found = {job.name: job.reads for job in jobs_of(paths)}
    assert found["calibrate one"] == "export model.gguf"
    assert found["calibrate two"] == "export model.gguf dtype=fp16"


def test_recipes_of_one_name_are_refused(tmp_path):
    paths = [write_staged_recipe(tmp_path / directory, "one") for directory in ("a", "b")]
    with pytest.raises(MisuseError, match="need different file names; these are one, one"):
        jobs_of(paths)


def test_another_checkpoint_than_the_recipe_states_is_refused(tmp_path):
    path = write_staged_recipe(tmp_path / "a")
    with pytest.raises(Error, match="use the checkpoint that the recipe names"):
        jobs_of([path], str(tmp_path / "a/rows.txt"))


def test_the_recipes_of_the_documentation_can_be_read():
    paths = sorted((Path(__file__).parents[2] / "docs/examples/stages").glob("*.toml"))
    assert [path.stem for path in paths] == ["w4", "w8", "w8a8"]
    assert [(read_recipe(path).calibrate or {})["scheme"] for path in paths] == ["w4", "w8", "w8a8"]
