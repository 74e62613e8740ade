"""What may be written where: nothing that is read or that Piston did not write is ever replaced, by whatever name."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from toy_model import write_bundle

from piston.core.atomic_dir import atomic_dir, check_free, resumable_dir
from piston.core.errors import Error, MisuseError, OutputExistsError
from piston.core.outputs import check_output_files, write_output


@pytest.fixture
def model(tmp_path):
    """A directory that Piston wrote, in one of its own."""
    write_bundle(tmp_path / "place/model")
    return tmp_path / "place/model"


def link_to(model, name):
    (model.parent / name).symlink_to(model)
    return model.parent / name


NAMES = {
    "itself": lambda model: model,
    "by a link": lambda model: link_to(model, "link"),
    "by .. behind what is not there": lambda model: model / "none/..",
    "by ..": lambda model: model / "ort-cpu/../../model",
    "a directory that contains it": lambda model: model.parent,
    "the root": lambda model: Path("/"),
    "relative": lambda model: Path(os.path.relpath(model)),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_never_replaced_by_whatever_name(model, name):
    goal = NAMES[name](model)
    with pytest.raises(MisuseError), atomic_dir(goal, overwrite=True, reads=[model]):
        pytest.fail("the work began")
    with pytest.raises(MisuseError, match="would replace"):
        check_free(goal, overwrite=True, reads=[model])
    assert (model / "manifest.json").is_file()


def test_what_is_read_through_a_link_is_never_replaced(model):
    with pytest.raises(MisuseError, match="would replace"):
        check_free(model, overwrite=True, reads=[link_to(model, "link")])


def test_a_file_below_the_goal_that_is_read_is_never_replaced(model):
    with pytest.raises(MisuseError, match=r"would replace .*tokenizer.json"):
        check_free(model, overwrite=True, reads=[model / "tokenizer.json"])


def test_a_bind_mount_of_what_is_read_is_never_replaced(model, tmp_path):
    (tmp_path / "mounted").mkdir()
    mount = ["mount", "--bind", str(model.parent), str(tmp_path / "mounted")]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a bind mount needs root and the right to mount")
    try:
        with pytest.raises(MisuseError, match="would replace"):
            check_free(tmp_path / "mounted/model", overwrite=True, reads=[model])
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


def test_a_directory_beside_what_is_read_may_be_replaced(model):
    write_bundle(model.parent / "model2")
    check_free(model.parent / "model2", overwrite=True, reads=[model])


def photos(goal):
    goal.mkdir()
    (goal / "cat.jpg").write_text("cat")


def photos_with_a_manifest_of_another_kind(goal):
    photos(goal)
    (goal / "manifest.json").write_text('{"name": "holidays", "files": {"cat.jpg": 1}}')


def photos_in_a_bundle(goal):
    write_bundle(goal)
    photos(goal / "photos")


def another_model_in_a_bundle(goal):
    write_bundle(goal)
    write_bundle(goal / "other")


def a_link_in_a_bundle(goal):
    write_bundle(goal)
    (goal / "photos").symlink_to(goal.parent)


def a_file(goal):
    goal.write_text("notes")


def a_link_to_nowhere(goal):
    goal.symlink_to("nowhere")


FOREIGN = [
    photos,
    photos_with_a_manifest_of_another_kind,
    photos_in_a_bundle,
    another_model_in_a_bundle,
    a_link_in_a_bundle,
    a_file,
    a_link_to_nowhere,
]


@pytest.mark.parametrize("make", FOREIGN)
def test_overwrite_refuses_what_piston_did_not_write(tmp_path, make):
    goal = tmp_path / "goal"
    make(goal)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputExistsError, match=r"did not write|not a directory that Piston wrote"):
        check_free(goal, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("change", [None, "damaged", "signed", "of a later Piston", "files are gone"])
def test_overwrite_replaces_what_piston_wrote_in_whatever_state(model, change):
    if change == "damaged":
        (model / "tokenizer.json").write_text("x")
    elif change == "signed":
        (model / "manifest.json.minisig").write_text("signature")
    elif change == "of a later Piston":
        text = (model / "manifest.json").read_text()
        (model / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    elif change == "files are gone":
        (model / "tokenizer.json").unlink()
    with atomic_dir(model, overwrite=True) as work:
        (work / "new").write_text("new")
    assert [path.name for path in model.iterdir()] == ["new"]


def test_a_directory_that_contains_the_current_one_is_not_replaced(model, monkeypatch):
    monkeypatch.chdir(model / "ort-cpu")
    with pytest.raises(OutputExistsError, match="contains the current directory"):
        check_free(model, overwrite=True)


def test_a_name_that_is_not_utf8_is_refused_before_the_work(tmp_path):
    with pytest.raises(MisuseError, match="not UTF-8"), atomic_dir(tmp_path / os.fsdecode(b"\xff/goal")):
        pytest.fail("the work began")


def test_a_work_directory_that_is_what_is_read_is_refused(model):
    source = model.rename(model.with_name(".out.calibration"))
    with (
        pytest.raises(MisuseError, match="would replace"),
        resumable_dir(source.with_name("out"), "calibration", reads=[source]),
    ):
        pytest.fail("the work began")
    assert (source / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["manifest.json", "ort-cpu/model.onnx", "ort-cpu/../tokenizer.json"])
def test_a_report_does_not_replace_a_recorded_file_of_what_is_read(model, name):
    with pytest.raises(MisuseError, match=r"--html .* would replace"):
        check_output_files({"--html": model / name}, [model])
    with pytest.raises(MisuseError, match=r"--html .* would replace"):
        check_output_files({"--html": link_to(model, "link") / name}, [model])


def test_a_report_may_lie_beside_the_recorded_files(model):
    (model / "report.html").write_text("of an earlier run")
    check_output_files({"--html": model / "report.html"}, [model, None])


def test_a_report_does_not_replace_a_file_of_a_checkpoint_or_data(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "data.txt").write_text("text")
    with pytest.raises(MisuseError, match="would replace"):
        check_output_files({"--report": tmp_path / "config.json"}, [tmp_path])
    (tmp_path / "same.txt").hardlink_to(tmp_path / "data.txt")
    with pytest.raises(MisuseError, match="would replace"):
        check_output_files({"--report": tmp_path / "same.txt"}, [tmp_path / "data.txt"])


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(MisuseError, match="there is no directory"):
        check_output_files({"--html": tmp_path / "none/report.html"}, [])
    with pytest.raises(MisuseError, match="is a directory"):
        check_output_files({"--html": tmp_path}, [])


def test_two_reports_are_two_files(tmp_path):
    with pytest.raises(MisuseError, match="--html and --junit both name"):
        check_output_files({"--html": tmp_path / "x", "--junit": tmp_path / "../" / tmp_path.name / "x"}, [])
    check_output_files({"--html": Path("/dev/stdout"), "--junit": Path("/dev/stdout")}, [])


def test_a_file_is_replaced_as_a_whole_and_its_other_names_keep_what_they_had(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").hardlink_to(tmp_path / "old")
    (tmp_path / "link").symlink_to("new")
    write_output(tmp_path / "link", "written")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "written"
    assert (tmp_path / "old").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new", "old"]


def test_a_file_that_fails_half_way_leaves_the_old_one_and_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "report").write_text("old")

    def failing(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(Error, match=r"Cannot write .*report: No space left on device"):
        write_output(tmp_path / "report", "new")
    assert (tmp_path / "report").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_pipe_is_written_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "pipe", "report")
    assert os.read(reader, 100) == b"report"
    os.close(reader)


def test_a_directory_that_cannot_be_written_may_hold_a_file_that_can(tmp_path, monkeypatch):
    (tmp_path / "report").write_text("old")
    opened = Path.open

    def refused(path, mode="r", **options):
        if mode == "xb":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", refused)
    write_output(tmp_path / "report", "new")
    assert (tmp_path / "report").read_text() == "new"
