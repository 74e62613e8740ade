"""Finds stop strings in text that arrives in arbitrary pieces."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from piston.core.errors import MisuseError


class _View(NamedTuple):
    """A text with the position of each character in the whole text."""

    text: str
    places: Sequence[int]
    length: int  # of the whole text


class StopScanner:
    """Passes text on until a stop string is complete.

    The stop string that is complete first wins, as if the text were read character by character: nothing
    has to be generated beyond it to decide, and it does not matter how the text was cut. Of several that
    are complete at the same character the longest wins, so the order of `stops` never matters.

    Args:
        stops: the stop strings; without any, all text passes.
        include: show the stop string at the end of the text.

    Raises:
        MisuseError: a stop string is empty, or `stops` is itself a string.
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        if isinstance(stops, str):
            raise MisuseError(f"Stop strings must be a list: pass [{stops!r}], not {stops!r}")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise MisuseError(f"Stop strings must be strings of at least one character, not {stop!r}")
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._is_shown = b""  # for each held character: 1, or 0 if it is matched but never shown
        self._num_immune = 0  # positions in the held text at which a stop string may end without stopping
        self._stopped_by: str | None = None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found, or None so far."""
        return self._stopped_by

    def push(self, text: str, *, may_stop: bool = True, shown: bool = True) -> str:
        """Take the next piece; return the text that may be shown: none after a stop string was found.

        With `may_stop=False` a stop string that is complete within this piece is text like any other; one that only
        begins in it counts. With `shown=False` the piece (a special token) is matched but left out of the text, except
        inside a stop string that is to be included.
        """
        if self._stopped_by is not None:
            return ""
        is_shown = self._is_shown + bytes([shown]) * len(text)
        text = self._held + text
        if not may_stop:
            self._num_immune = len(text)
        views = list(_views(text, is_shown))
        if complete := [match for view in views for match in self._complete_in(view)]:
            _, decided, self._stopped_by = min(complete)
            self._held, self._is_shown = "", b""
            stop_string = self._stopped_by if self._include else ""
        else:
            decided, stop_string = min(map(self._undecided_from, views)), ""
            self._held, self._is_shown = text[decided:], is_shown[decided:]
            self._num_immune = max(0, self._num_immune - decided)
        return "".join(itertools.compress(text[:decided], is_shown)) + stop_string

    def flush(self) -> str:
        """End the text: return what was held back as a possible beginning of a stop string."""
        held = "".join(itertools.compress(self._held, self._is_shown))
        self._held, self._is_shown = "", b""
        return held

    def _complete_in(self, view: _View) -> Iterator[tuple[int, int, str]]:
        """End, beginning and name of each stop string, where it is first complete."""
        immune = bisect_left(view.places, self._num_immune)
        for stop in self._stops:
            if (start := view.text.find(stop, max(0, immune - len(stop) + 1))) >= 0:
                yield view.places[start + len(stop) - 1] + 1, view.places[start], stop

    def _undecided_from(self, view: _View) -> int:
        """The start of the longest suffix of the text that is a prefix of a stop string."""
        text = view.text
        earliest = max(0, len(text) - self._longest + 1)
        ends = ((i, text[i:]) for i in range(earliest, len(text)))
        undecided = (i for i, end in ends if any(s.startswith(end) and s != end for s in self._stops))
        return next((view.places[i] for i in undecided), view.length)


def _views(text: str, is_shown: bytes) -> Iterator[_View]:
    """The text that is searched: with special tokens spelt out, and without them as it is shown."""
    yield _View(text, range(len(text)), len(text))
    if 0 in is_shown:
        places = [place for place, shown in enumerate(is_shown) if shown]
        yield _View("".join(text[place] for place in places), places, len(text))
