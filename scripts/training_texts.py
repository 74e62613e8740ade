"""Bring texts to train on where `--data builtin` is too little, which are not part of Piston.

    python scripts/training_texts.py

| what                                | package of Debian 12        |
|-------------------------------------|-----------------------------|
| An Anarchist FAQ, sections A to F   | anarchism 15.3-3            |
| The Debian Administrator's Handbook | debian-handbook 11.20220922 |
| Debian Reference                    | debian-reference-en 2.100   |

They are long, in English, and have nothing to do with the held-out texts (`heldout_texts.py`). The packages are checked
by SHA-256. Prints the path of the file that holds them all, 5.3 million characters, in $PISTON_CACHE_DIR/texts.
"""

import gzip
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from heldout_texts import UnavailableError, cache_dir, keep, unpacked

BLOCKS = frozenset({"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "td", "dd", "dt", "blockquote", "pre", "br", "tr"})
SILENT = frozenset({"script", "style", "title"})
SHORTEST = 40  # characters; shorter lines are headings, links and the like


class Paragraphs(HTMLParser):
    """The text of a page, a paragraph on each line."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """See HTMLParser."""
        del attrs
        self.silent += tag in SILENT
        self.parts += ["\n"] if tag in BLOCKS else []

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        self.silent -= tag in SILENT
        self.parts += ["\n"] if tag in BLOCKS else []

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        self.parts += [] if self.silent else [data.replace("\n", " ")]


def of_pages(files: Path, pattern: str) -> str:
    """The text of HTML pages in the order of their names."""
    pages = sorted(files.glob(pattern))
    return "\n".join("".join(Paragraphs(page.read_text("utf-8", "replace")).parts) for page in pages)


def of_text(files: Path, pattern: str) -> str:
    """The paragraphs of packed text, whose lines are broken."""
    (path,) = files.glob(pattern)
    text = gzip.decompress(path.read_bytes()).decode()
    return "\n".join(part.replace("\n", " ") for part in re.split(r"\n\s*\n", text))


@dataclass(frozen=True)
class Book:
    """A package, and how its text is read."""

    package: str
    version: str
    sha256: str
    read: Callable[[Path, str], str]
    pattern: str


BOOKS = (
    Book(
        "anarchism",
        "15.3-3",
        "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        of_pages,
        "usr/share/doc/anarchism/html/sec[A-F]*.html",
    ),
    Book(
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        of_pages,
        "usr/share/doc/debian-handbook/html/en-US/*.html",
    ),
    Book(
        "debian-reference-en",
        "2.100",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
        of_text,
        "usr/share/debian-reference/debian-reference.en.txt.gz",
    ),
)


def training_text() -> Path:
    """The file of all texts, made first where it is not in the cache; raises UnavailableError."""
    path = cache_dir() / "training.txt"
    if path.is_file():
        return path
    parts = []
    for book in BOOKS:
        with tempfile.TemporaryDirectory() as temporary:
            text = book.read(unpacked(book.package, book.version, book.sha256, Path(temporary)), book.pattern)
        lines = (" ".join(line.split()) for line in text.split("\n"))
        parts += [line for line in lines if len(line) >= SHORTEST]
    return keep(path, ("\n\n".join(parts) + "\n").encode())


if __name__ == "__main__":
    try:
        print(training_text())
    except UnavailableError as reason:
        sys.exit(f"skipped: {reason}")
