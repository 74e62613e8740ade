import numpy as np
import pytest

from piston.calibration.observe import checkpoint_file as progress_file
from piston.calibration.observe.checkpoint_file import ProgressFile, key_of

KEY = key_of({"rows": "abc"})
STATES = {"a/b": {"x": np.arange(3), "y": np.array(2.5)}, "empty": {}}


def test_what_was_saved_is_loaded(tmp_path):
    ProgressFile(tmp_path / "work", KEY).save(7, STATES)
    done, states = ProgressFile(tmp_path / "work", KEY).load()
    assert done == 7
    assert states.keys() == STATES.keys()
    assert states["empty"] == {}
    for part, array in STATES["a/b"].items():
        np.testing.assert_array_equal(states["a/b"][part], array)
        assert states["a/b"][part].dtype == array.dtype


def test_a_later_save_replaces_an_earlier_one(tmp_path):
    file = ProgressFile(tmp_path, KEY)
    file.save(1, STATES)
    file.save(2, {})
    assert file.load() == (2, {})
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK", b"not an archive"])
def test_a_damaged_file_is_no_progress(tmp_path, damage):
    file = ProgressFile(tmp_path, KEY)
    file.save(7, STATES)
    file.path.write_bytes(damage)
    assert file.load() == (0, {})


def test_the_file_of_another_key_is_no_progress(tmp_path):
    file = ProgressFile(tmp_path, KEY)
    file.save(7, STATES)
    other = ProgressFile(tmp_path, key_of({"rows": "abd"}))
    file.path.rename(other.path)
    assert other.load() == (0, {})


def test_without_a_directory_nothing_is_kept():
    file = ProgressFile(None, KEY)
    file.save(7, STATES)
    assert file.load() == (0, {})
    assert not file.is_due
    file.remove()


def test_a_save_is_due_after_a_while(tmp_path, monkeypatch):
    assert not ProgressFile(tmp_path, KEY).is_due
    monkeypatch.setattr(progress_file, "INTERVAL", 0.0)
    assert ProgressFile(tmp_path, KEY).is_due


def test_removed_progress_is_forgotten(tmp_path):
    file = ProgressFile(tmp_path, KEY)
    file.save(7, STATES)
    file.remove()
    assert file.load() == (0, {})


def test_a_key_does_not_depend_on_the_order_of_settings():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
