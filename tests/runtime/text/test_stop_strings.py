import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piston.core.errors import MisuseError
from piston.runtime.text.stop_strings import StopScanner


def scan(pieces, stops, *, include=False):
    scanner = StopScanner(stops, include=include)
    shown = "".join([scanner.push(piece) for piece in pieces]) + scanner.flush()
    return shown, scanner.stopped_by


def first_complete(text, stops):
    """Reads character by character, as the scanner claims to: (stop, text before it) or (None, text)."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return stop, text[: end - len(stop)]
    return None, text


def cut(text, places):
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]


# Few letters, so that stop strings occur, overlap and nearly occur.
texts = st.text("ab\n", max_size=40)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)
cuts = st.lists(st.integers(0, 1000), max_size=20)


@settings(deadline=None)
@given(texts, stop_lists, cuts, st.booleans())
def test_any_cut_gives_what_reading_character_by_character_gives(text, stops, places, include):
    stop, before = first_complete(text, stops)
    expected = before + stop if include and stop else before
    assert scan(cut(text, places), stops, include=include) == (expected, stop)


@settings(deadline=None)
@given(texts, stop_lists)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text, stops):
    scanner = StopScanner(stops, include=False)
    shown = ""
    for end, char in enumerate(text, start=1):
        shown += scanner.push(char)
        if scanner.stopped_by is not None:
            break
        held = text[len(shown) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


@settings(deadline=None)
@given(texts.filter(lambda text: "b" not in text), cuts)
def test_text_without_a_stop_string_passes_unchanged(text, places):
    assert scan(cut(text, places), ["ab", "\nb", "aab"]) == (text, None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ab<", max_size=4), st.booleans()), max_size=8), stop_lists, st.booleans())
def test_hidden_pieces_are_matched_and_not_shown(pieces, stops, include):
    scanner = StopScanner(stops, include=include)
    shown = "".join([scanner.push(text, shown=is_shown) for text, is_shown in pieces]) + scanner.flush()
    chars = [(char, is_shown) for text, is_shown in pieces for char in text]
    expected, stopped_by = "".join(char for char, is_shown in chars if is_shown), None
    for end in range(1, len(chars) + 1):
        spelt, visible = ("".join(char for char, is_shown in chars[:end] if is_shown or all_) for all_ in (True, False))
        # A stop string ends in the text with hidden pieces spelt out, or in what is shown; the one that began first.
        begins = [(end - len(stop), stop) for stop in stops if spelt.endswith(stop)]
        if chars[end - 1][1]:
            places = [place for place, (_, is_shown) in enumerate(chars[:end]) if is_shown]
            begins += [(places[-len(stop)], stop) for stop in stops if visible.endswith(stop)]
        if begins:
            begin, stopped_by = min(begins)
            expected = "".join(char for char, is_shown in chars[:begin] if is_shown) + (stopped_by if include else "")
            break
    assert (shown, scanner.stopped_by) == (expected, stopped_by)


def test_stop_string_across_pieces_is_found():
    assert scan(["Hello <|im", "_e", "nd|> more"], ["<|im_end|>"]) == ("Hello ", "<|im_end|>")


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end():
    scanner = StopScanner(["\n\nUser:"], include=False)
    assert [scanner.push(piece) for piece in ["Hi\n", "\nUs", "age: x"]] == ["Hi", "", "\n\nUsage: x"]


def test_flush_gives_what_was_held_once():
    scanner = StopScanner(["END"], include=False)
    assert (scanner.push("the EN"), scanner.flush(), scanner.flush()) == ("the ", "EN", "")


def test_include_shows_the_stop_string_and_nothing_beyond():
    assert scan(["a E", "ND b"], ["END"], include=True) == ("a END", "END")


def test_shorter_stop_string_wins_when_it_is_complete_first():
    assert scan(["abcd"], ["abcd", "bc"]) == ("a", "bc")


def test_longer_stop_string_wins_when_both_end_together():
    assert scan(["Hi\nUser:"], ["User:", "\nUser:"]) == ("Hi", "\nUser:")


def test_nothing_is_shown_after_the_stop():
    scanner = StopScanner(["."], include=False)
    assert (scanner.push("One. Two."), scanner.push(" Three"), scanner.flush()) == ("One", "", "")


def test_without_stop_strings_everything_passes_at_once():
    scanner = StopScanner([], include=False)
    assert (scanner.push("abc"), scanner.flush(), scanner.stopped_by) == ("abc", "", None)


@pytest.mark.parametrize("stops", ["END", [""], ["a", ""], [b"END"], [3]])
def test_what_is_no_list_of_stop_strings_is_misuse(stops):
    with pytest.raises(MisuseError, match="Stop strings must be"):
        StopScanner(stops, include=False)
