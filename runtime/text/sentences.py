"""Long texts cut at the ends of sentences."""

import re
from collections.abc import Callable

# Behind the marks that end a sentence, with quotes and brackets that close behind them; in scripts without spaces at
# the mark itself; and at line breaks.
_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'»”’)\]]))\s+|(?<=[。！？])\s*|\n+")  # noqa: RUF001


def split_sentences(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in pieces that fit, of as many sentences as that; a sentence that does not fit is a piece of its own."""
    pieces: list[str] = []
    start = end = 0  # of the piece under way
    for stop, following in [*((match.start(), match.end()) for match in _END.finditer(text)), (len(text), len(text))]:
        if end > start and not fits(text[start:stop].strip()):
            pieces.append(text[start:end].strip())
            start = end
        end = following
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]
