"""Arrays on disk come back as they were, in files of those that nobody reads any more."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from piston.calibration.observe.row_files import RowFiles
from piston.core.errors import CalibrationError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 3, 5), (2, 1, 4, 3)])
def test_an_array_comes_back_as_it_was(tmp_path, dtype, shape):
    array = (np.random.default_rng(0).normal(size=shape) * 3).astype(dtype)
    files = RowFiles(tmp_path / "rows")
    files.save("a", array)
    found = RowFiles(tmp_path / "rows").load("a")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_a_view_that_is_not_contiguous_is_saved_as_it_reads(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    files = RowFiles(tmp_path)
    files.save("a", array)
    np.testing.assert_array_equal(files.load("a"), array)


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3), (5, 5)])
def test_the_file_of_a_dropped_array_serves_the_next_and_nothing_of_it_is_left(tmp_path, sizes):
    files = RowFiles(tmp_path)
    for key, size in zip("ab", sizes, strict=True):
        files.save(key, np.full(size, size, np.float32))
        np.testing.assert_array_equal(files.load(key), np.full(size, size, np.float32))
        files.drop(key)
    assert len(list(tmp_path.iterdir())) == 1


def test_dropping_what_is_not_there_is_nothing(tmp_path):
    RowFiles(tmp_path / "rows").drop("a")
    assert not (tmp_path / "rows").exists()


def test_what_is_dropped_twice_or_saved_again_is_given_away_once(tmp_path):
    files = RowFiles(tmp_path)
    for key in "ab":
        files.save(key, np.zeros(3))
    for key in "aba":
        files.drop(key)
    for value, key in enumerate("acd"):
        files.save(key, np.full(3, value))
    assert [files.load(key)[0] for key in "acd"] == [0, 1, 2]


@pytest.mark.parametrize("left", [0, 100, -1])
def test_an_array_of_which_a_part_is_missing_is_refused(tmp_path, left):
    files = RowFiles(tmp_path)
    files.save("a", np.zeros(100))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CalibrationError, match="cut short"):
        files.load("a")


def test_the_file_of_a_dropped_array_serves_one_of_the_threads_that_save_at_once(tmp_path):
    files, meeting, interval = RowFiles(tmp_path), threading.Barrier(8), sys.getswitchinterval()

    def save(key):
        meeting.wait(timeout=10)
        files.save(str(key), np.full(3, key))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for turn in range(100):
                files.save("dead", np.zeros(3))
                files.drop("dead")
                keys = range(8 * turn, 8 * turn + 8)
                list(pool.map(save, keys))
                assert [files.load(str(key))[0] for key in keys] == list(keys)
    finally:
        sys.setswitchinterval(interval)
    assert len(list(tmp_path.iterdir())) == 800
