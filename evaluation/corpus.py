"""The text to score, as token ids: read once, encoded once, cut only by the windows."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from piston.core.data_files import as_text, field_of, read_bytes, records_of
from piston.core.errors import MisuseError
from piston.evaluation.windows import Window, Windowing
from piston.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `prefix` holds the tokens that the tokenizer prepends, such as BOS; appended tokens are left out."""

    prefix: tuple[int, ...]
    token_ids: tuple[int, ...]

    def fed(self, window: Window) -> list[int]:
        """The tokens that an engine reads to score the window; the last token is only scored."""
        return [*self.prefix, *self.token_ids[window.start : window.end - 1]]

    def targets(self, window: Window) -> list[int]:
        """The tokens that the window scores."""
        return list(self.token_ids[window.first : window.end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The documents of a file and its hash. No window spans two documents."""

    path: str
    sha256: str
    documents: tuple[Document, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all documents, without prefixes."""
        return sum(len(document.token_ids) for document in self.documents)

    def windows(self, windowing: Windowing) -> Iterator[tuple[int, Window]]:
        """Every window of every document, with the document's number."""
        for number, document in enumerate(self.documents):
            for window in windowing.windows(len(document.token_ids), len(document.prefix)):
                yield number, window


def read_corpus(path: Path, tokenizer: Tokenizer, max_tokens: int | None = None) -> Corpus:
    """Read a text, or the documents ({"text": ...} or a string) of a file of records (see data_files).

    Args:
        path: a UTF-8 file: text, .jsonl, .json, .csv or .tsv.
        tokenizer: makes the ids; it decides whether a text begins with BOS.
        max_tokens: keep only this many tokens, from the beginning.

    Raises:
        MisuseError: the file is missing, empty, not UTF-8, or has no such documents.
    """
    data = read_bytes(path)
    text = as_text(data, path)
    records = records_of(text, path)
    texts = [text] if records is None else [_text_of(record, where) for where, record in records]
    if not any(item.strip() for item in texts):
        raise MisuseError(f"{path} holds no text; give a file with some.")
    documents, left = [], max_tokens
    for item in texts:
        document = encode(item, tokenizer)
        kept = document.token_ids[:left]
        documents.append(Document(document.prefix, kept))
        left = None if left is None else left - len(kept)
        if left == 0:
            break
    return Corpus(path=str(path), sha256=hashlib.sha256(data).hexdigest(), documents=tuple(documents))


def encode(text: str, tokenizer: Tokenizer) -> Document:
    """Token ids of a text and, separately, the tokens that the tokenizer prepends."""
    plain = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.encode(text)
    starts = range(len(whole) - len(plain) + 1)
    at = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
    return Document(tuple(whole[:at]), tuple(plain))


def _text_of(record: object, where: str) -> str:
    found = field_of(record, ("text",), where)
    if not isinstance(found, str):
        raise MisuseError(f'{where}, has no text; a document is {{"text": ...}} or a string.')
    return found
