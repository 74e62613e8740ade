import importlib
import itertools
import platform
import textwrap
from pathlib import Path

import pytest

from piston.core.errors import MisuseError
from piston.data.python_texts import DOCSTRINGS, SOURCES, python_texts


def named(ending):
    (found,) = [data.decode() for name, data in python_texts() if name.endswith(ending)]
    return found


def test_sources_are_those_of_the_python_that_runs():
    assert named("source of textwrap") == Path(textwrap.__file__).read_text(encoding="utf-8")


def test_docstrings_tell_what_they_belong_to():
    found = named("docstrings of itertools")
    assert itertools.__doc__.strip() in found
    assert "\n\nitertools.chain.from_iterable\n\n" in found
    assert "__init__" not in found


def test_names_are_in_a_fixed_order_and_tell_the_version():
    texts = list(python_texts())
    assert len(texts) == len(SOURCES) + len(DOCSTRINGS)
    assert texts == list(python_texts())
    assert all(name.startswith(f"Python {platform.python_version()}, ") for name, _ in texts)
    assert 100_000 < sum(len(data) for _, data in texts) < 250_000


def test_a_library_without_its_sources_is_refused(monkeypatch):
    loader = type("Loader", (), {"get_source": lambda self, name: None})()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: type("Spec", (), {"loader": loader}))
    with pytest.raises(MisuseError, match=r"no source of its module csv, .* give your own text as --data FILE"):
        list(python_texts())
