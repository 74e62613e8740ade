import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from piston.core.atomic_dir import atomic_dir, resumable_dir, sweep
from piston.core.errors import Error, HostMemoryError, OutputExistsError

WRITER = """
import sys, time
from pathlib import Path
from piston.core.atomic_dir import atomic_dir
goal = Path(sys.argv[1])
while True:
    with atomic_dir(goal, is_private=True) as work:
        for name in range(30):
            (work / str(name)).write_bytes(b"x" * 1000)
    print("published", flush=True)
"""


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def write(goal, text="new", **options):
    with atomic_dir(goal, **options) as work:
        (work / "a").write_text(text)


def write_half(goal, problem):
    with atomic_dir(goal) as work:
        (work / "deep").mkdir()
        (work / "deep/a").write_text("half")
        raise problem


@pytest.fixture
def goal(tmp_path):
    return tmp_path / "place" / "goal"


@pytest.fixture
def old(goal):
    make_directory(goal)
    return goal


def beside(goal):
    return sorted(path.name for path in goal.parent.iterdir())


def test_a_block_that_succeeds_publishes_its_files(goal):
    write(goal)
    assert contents(goal) == {"a": "new"}
    assert beside(goal) == ["goal"]


def test_the_goal_is_not_there_before_the_block_ends(goal):
    with atomic_dir(goal) as work:
        (work / "a").write_text("new")
        assert not goal.exists()
        assert goal.parent in work.parents  # one file system: the rename is atomic


def test_a_published_directory_has_the_mode_of_any_other(goal):
    write(goal)
    (goal.parent / "other").mkdir()
    assert goal.stat().st_mode == (goal.parent / "other").stat().st_mode


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_a_block_that_fails_leaves_nothing(goal, problem):
    with pytest.raises(problem):
        write_half(goal, problem())
    assert beside(goal) == []


def test_an_existing_goal_is_refused_before_the_work(old):
    with pytest.raises(OutputExistsError, match=r"goal exists already.*--overwrite"), atomic_dir(old):
        pytest.fail("the work began")
    assert contents(old) == {"a": "old"}
    assert beside(old) == ["goal"]


def test_a_file_in_the_way_is_refused_before_the_work(goal):
    goal.parent.mkdir()
    goal.write_text("old")
    with pytest.raises(OutputExistsError), atomic_dir(goal):
        pytest.fail("the work began")


def test_an_empty_directory_may_become_the_goal(goal):
    goal.mkdir(parents=True)
    write(goal)
    assert contents(goal) == {"a": "new"}


def test_a_goal_that_appeared_during_the_work_is_left_alone(goal):
    with pytest.raises(OutputExistsError), atomic_dir(goal):
        make_directory(goal, "theirs")
    assert contents(goal) == {"a": "theirs"}
    assert beside(goal) == ["goal"]


def test_the_old_is_replaced_as_a_whole(old):
    (old / "b").write_text("old")
    write(old, is_private=True)
    assert contents(old) == {"a": "new"}
    assert beside(old) == ["goal"]


def test_the_old_is_kept_until_the_new_is_whole(old):
    with atomic_dir(old, is_private=True) as work:
        (work / "a").write_text("new")
        assert contents(old) == {"a": "old"}
    assert contents(old) == {"a": "new"}


def test_the_old_is_kept_when_the_block_fails(old):
    with pytest.raises(ValueError, match="no"), atomic_dir(old, is_private=True):
        raise ValueError("no")
    assert contents(old) == {"a": "old"}
    assert beside(old) == ["goal"]


def make_directory(goal, text="old"):
    goal.mkdir(parents=True)
    (goal / "a").write_text(text)


def make_file(goal):
    goal.parent.mkdir()
    goal.write_text("old")


def make_link(goal):
    goal.parent.mkdir()
    goal.symlink_to("nowhere")


def make_link_to_directory(goal):
    (goal.parent / "target").mkdir(parents=True)
    (goal.parent / "target/a").write_text("old")
    goal.symlink_to("target")


@pytest.mark.parametrize("make", [make_file, make_link, make_link_to_directory])
def test_a_private_place_is_replaced_whatever_is_there(goal, make):
    make(goal)
    others = [name for name in beside(goal) if name != "goal"]
    write(goal, is_private=True)
    assert not goal.is_symlink()
    assert contents(goal) == {"a": "new"}
    assert beside(goal) == ["goal", *others]
    assert all(contents(goal.parent / name) == {"a": "old"} for name in others)


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("problem", [OSError(errno.EIO, "bad sector"), KeyboardInterrupt()])
@pytest.mark.parametrize("make", [make_directory, make_file])
def test_a_failing_rename_restores_the_old(goal, monkeypatch, failing, problem, make):
    make(goal)
    rename, calls = Path.rename, []

    def failing_rename(path, target):
        calls.append(target)
        if len(calls) == failing:
            raise problem
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(type(problem)):
        write(goal, is_private=True)
    assert (goal.read_text() if goal.is_file() else contents(goal)["a"]) == "old"
    assert beside(goal) == ["goal"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_our_error_and_leaves_nothing(goal, code):
    with pytest.raises(Error, match=r"The disk of .*place is full; nothing was written"):
        write_half(goal, OSError(code, os.strerror(code)))
    assert beside(goal) == []


def test_a_disk_that_is_really_full_is_our_error_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    try:
        with pytest.raises(Error, match="is full"), atomic_dir(disk / "goal") as work:
            (work / "a").write_bytes(b"x" * 1_000_000)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_place_that_cannot_be_written_is_our_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="Cannot write next to"), atomic_dir(tmp_path / "file" / "goal"):
        pytest.fail("the work began")


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_directory_is_refused_before_the_work(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputExistsError, match="current directory"), atomic_dir(Path(name)):
        pytest.fail("the work began")


def test_a_mount_point_is_refused_before_the_work(goal, monkeypatch):
    goal.mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == goal)
    with pytest.raises(OutputExistsError, match=r"mount point.*directory inside it"), atomic_dir(goal):
        pytest.fail("the work began")


def kill_while_writing(goal, seconds, how):
    writer = [sys.executable, "-c", WRITER, str(goal)]
    with subprocess.Popen(writer, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"published\n"
        time.sleep(seconds)
        process.send_signal(how)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("milliseconds", [0, 3, 7, 13, 29])
def test_a_killed_writer_never_leaves_half_a_goal(goal, how, milliseconds):
    kill_while_writing(goal, milliseconds / 1000, how)
    # Under SIGKILL alone may the old be aside, if it hits between two renames.
    assert goal.exists() or (how == signal.SIGKILL and list(goal.parent.glob(".goal.*/old")))
    assert not goal.exists() or [len(text) for text in contents(goal).values()] == [1000] * 30


def leftover_of(goal, *parts):
    """What a process that was killed leaves behind."""
    stage = goal.parent / f".{goal.name}.abcd_123.part"
    for part in parts:
        make_directory(stage / part, part)
    return stage


def test_what_a_killed_process_left_is_swept_by_the_next(goal):
    leftover = leftover_of(goal, "new")
    write(goal)
    assert not leftover.exists()
    assert beside(goal) == ["goal"]


def test_an_old_goal_that_was_aside_when_the_process_died_is_put_back(goal, capsys):
    leftover_of(goal, "new", "old")
    assert [path.name for path in sweep(goal.parent)] == [".goal.abcd_123.part"]
    assert contents(goal) == {"a": "old"}
    assert beside(goal) == ["goal"]
    assert "was put back" in capsys.readouterr().err


def test_an_old_goal_aside_does_not_replace_the_new_one(old):
    leftover_of(old, "old")
    (old / "a").write_text("newer")
    sweep(old.parent)
    assert contents(old) == {"a": "newer"}


def test_without_overwrite_a_goal_that_is_put_back_is_not_replaced(goal):
    leftover_of(goal, "old")
    with pytest.raises(OutputExistsError):
        write(goal)
    assert contents(goal) == {"a": "old"}


def test_the_directory_of_a_living_process_is_not_swept(goal):
    with atomic_dir(goal) as work:
        assert sweep(goal.parent) == []
        write(goal.with_name("other"))
        (work / "a").write_text("mine")
    assert contents(goal) == {"a": "mine"}


def test_only_leftovers_of_the_goal_are_swept_by_a_stage(goal):
    leftover = leftover_of(goal.with_name("other"), "new")
    unrelated = goal.parent / ".goal.part"
    unrelated.mkdir()
    write(goal)
    assert leftover.exists()
    assert unrelated.exists()
    assert sweep(goal.parent) == [leftover]


def test_two_writers_and_sweepers_never_lose_a_goal(goal):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(goal)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    time.sleep(1)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    sweep(goal.parent)
    assert beside(goal) == ["goal"]
    assert len(list(goal.iterdir())) == 30


def count_to_three(goal, problem):
    with resumable_dir(goal, "counting") as place:
        (place / "so-far").write_text("3")
        raise problem


def test_what_an_interrupt_left_is_there_for_the_next_run_and_gone_after_it(goal):
    with pytest.raises(KeyboardInterrupt):
        count_to_three(goal, KeyboardInterrupt())
    assert beside(goal) == [".goal.counting"]
    with resumable_dir(goal, "counting") as place:
        assert contents(place) == {"so-far": "3"}
    assert beside(goal) == []


def test_an_error_leaves_nothing_to_go_on_from(goal):
    with pytest.raises(ValueError, match="wrong"):
        count_to_three(goal, ValueError("wrong"))
    assert beside(goal) == []


def test_what_was_there_when_memory_ran_out_is_kept_and_that_is_said(goal):
    with pytest.raises(HostMemoryError, match=r"Out of memory: 9 GB asked\. The work so far is kept in .*counting; "):
        count_to_three(goal, MemoryError("9 GB asked."))
    with resumable_dir(goal, "counting") as place:
        assert contents(place) == {"so-far": "3"}


def test_an_interrupt_before_anything_was_kept_leaves_no_directory(goal):
    with pytest.raises(KeyboardInterrupt), resumable_dir(goal, "counting"):
        raise KeyboardInterrupt
    assert beside(goal) == []


def test_a_second_process_that_would_write_the_same_goal_is_told_of_the_first(goal):
    code = "import sys; from pathlib import Path; from piston.core.atomic_dir import resumable_dir\n"
    code += "with resumable_dir(Path(sys.argv[1]), 'counting'): pass"
    with resumable_dir(goal, "counting") as place:
        (place / "so-far").write_text("3")
        second = subprocess.run([sys.executable, "-c", code, str(goal)], capture_output=True, text=True, check=False)
        assert contents(place) == {"so-far": "3"}
    assert f"{goal} is being written by another process" in second.stderr
