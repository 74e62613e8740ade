"""Toys are made once, found by the next session, and never changed by a test."""

import functools

import pytest
import toys
from toys import Toys


@pytest.fixture
def sessions(tmp_path):
    """sessions() -> toys of a new session on one cache; each writes what it is told and counts how often."""
    made = []

    def write(text, out):
        made.append(text)
        (out / "file").write_text(text)

    def session():
        directory = tmp_path / f"session{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        found = Toys(directory, tmp_path / "cache")
        return lambda text: found._copy("kind", {"text": text}, "export", functools.partial(write, text)) / "file"

    return session, made


def test_a_toy_is_made_once_for_all_sessions(sessions):
    session, made = sessions
    first, second = session(), session()
    assert [first("a").read_text(), first("a").read_text(), second("a").read_text()] == ["a"] * 3
    assert first("b").read_text() == "b"
    assert made == ["a", "b"]


def test_what_a_test_does_to_a_toy_does_not_reach_the_next_session(sessions):
    session, made = sessions
    session()("a").write_text("damaged")
    assert session()("a").read_text() == "a"
    assert made == ["a"]


def test_a_damaged_entry_is_made_again(sessions, tmp_path):
    session, made = sessions
    session()("a")
    next((tmp_path / "cache/kind").rglob("file")).write_text("damaged")
    assert session()("a").read_text() == "a"
    assert made == ["a", "a"]


def test_a_toy_is_made_again_when_what_made_it_changes(sessions, monkeypatch):
    session, made = sessions
    session()("a")
    monkeypatch.setattr(toys, "code_of", lambda verb: "other code")
    toys._made_by.cache_clear()
    session()("a")
    monkeypatch.undo()
    toys._made_by.cache_clear()
    assert made == ["a", "a"]
