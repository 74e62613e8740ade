"""Stop strings found in text that arrives in pieces cut anywhere."""

from collections.abc import Sequence

from piston.core.errors import MisuseError


class StopScanner:
    """Lets text through until a stop string is complete.

    The stop string that is complete first wins, as if the text were read character by character: nothing
    has to be generated beyond it to decide, and it does not matter how the text was cut. Of several that
    are complete at the same character the longest wins, so the order of `stops` never matters.

    Args:
        stops: the stop strings; none lets everything through.
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
        self._num_immune = 0  # characters of what is held at which a stop string may end without stopping
        self._stopped_by: str | None = None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found, or None so far."""
        return self._stopped_by

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """Take the next piece; give what may be shown: nothing more once a stop string was found.

        With `may_stop=False` a stop string that is complete within this piece is text like any other; one that only
        begins in it counts.
        """
        if self._stopped_by is not None:
            return ""
        text = self._held + text
        if not may_stop:
            self._num_immune = len(text)
        found = [(text.find(stop, max(0, self._num_immune - len(stop) + 1)), stop) for stop in self._stops]
        complete = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if complete:
            end, start, self._stopped_by = min(complete)
            shown_len, self._held = (end if self._include else start), ""
        else:
            shown_len = self._undecided_from(text)
            self._held = text[shown_len:]
            self._num_immune = max(0, self._num_immune - shown_len)
        return text[:shown_len]

    def flush(self) -> str:
        """The text has ended: give what was held back as the possible beginning of a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided_from(self, text: str) -> int:
        """Where the longest end of the text begins that is the beginning of a stop string."""
        earliest = max(0, len(text) - self._longest + 1)
        ends = ((i, text[i:]) for i in range(earliest, len(text)))
        undecided = (i for i, end in ends if any(s.startswith(end) and s != end for s in self._stops))
        return next(undecided, len(text))
