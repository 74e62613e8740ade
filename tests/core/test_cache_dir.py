import os
import stat
import tempfile
from pathlib import Path

import pytest

from piston.core.cache_dir import cache_dir, expand_user
from piston.core.errors import Error


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A process whose user id has no entry in /etc/passwd, without HOME and the variables of the cache."""
    for name in ("PISTON_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return monkeypatch


def test_the_variables_decide_in_their_order(bare, tmp_path):
    bare.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir("make") == tmp_path / "home/.cache/piston/make"
    bare.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("make") == tmp_path / "xdg/piston/make"
    bare.setenv("PISTON_CACHE_DIR", str(tmp_path / "ours"))
    assert cache_dir("make") == tmp_path / "ours/make"


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_an_empty_or_relative_xdg_cache_home_counts_as_none_as_its_specification_asks(bare, tmp_path, value):
    bare.setenv("HOME", str(tmp_path))
    bare.setenv("XDG_CACHE_HOME", value)
    assert cache_dir("make") == tmp_path / ".cache/piston/make"


def test_without_a_home_it_is_a_directory_of_ones_own(bare, tmp_path):
    found = cache_dir("engines")
    assert found == tmp_path / f"tmp/piston-{os.getuid()}/engines"
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    assert cache_dir("engines") == found


def open_to_others(place):
    place.mkdir(mode=0o777)
    place.chmod(0o777)


def a_link(place):
    place.symlink_to(place.parent)


@pytest.mark.parametrize("make", [open_to_others, a_link, Path.touch])
def test_a_temporary_directory_that_others_may_write_is_refused(bare, tmp_path, make):
    make(tmp_path / f"tmp/piston-{os.getuid()}")
    with pytest.raises(Error, match="set PISTON_CACHE_DIR"):
        cache_dir("engines")


def test_a_tilde_without_a_home_stays(bare):
    assert expand_user("~/model") == Path("~/model")
