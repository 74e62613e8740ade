"""What a data file holds: texts, conversations or token ids, one document each.

| file                | documents                                                                              |
|---------------------|----------------------------------------------------------------------------------------|
| `.npy`              | integers, [tokens] for one document or [documents, tokens]                             |
| `.jsonl`, `.ndjson` | one a line: a string, a list of ids, a list of messages, or an object with one of them |
| anything else       | UTF-8 text; form feeds separate documents                                              |

An object's document is its `field`, or if none is named "messages" or "text". Messages become text through the
checkpoint's chat template.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.runtime.text.chat_template import ChatTemplate

Ids = NDArray[np.int64]
FIELDS = ("messages", "text")
SEPARATOR = "\f"


@dataclass(frozen=True, slots=True)
class Document:
    """Text to encode, or token ids [tokens] as they are."""

    content: str | Ids


def parse_documents(
    data: bytes, path: Path, *, field: str | None = None, template: ChatTemplate | None = None
) -> list[Document]:
    """The documents in the bytes of the file `path`; empty ones are left out.

    Raises:
        MisuseError: it holds none, or is not what its suffix says; the message names the line.
        TemplateError: the template refuses a conversation.
    """
    if path.suffix == ".npy":
        documents = _arrays(data, path)
    elif path.suffix in {".jsonl", ".ndjson"}:
        documents = list(_lines(_decoded(data, path), path, field, template))
    else:
        documents = [Document(text) for text in _decoded(data, path).split(SEPARATOR)]
    kept = [document for document in documents if _is_filled(document)]
    if not kept:
        raise MisuseError(f"{path} holds no data; give a file with text or token ids.")
    return kept


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that the user named; raises MisuseError."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise MisuseError(f"Cannot read the data file {path}: {problem.strerror}.") from None


def _is_filled(document: Document) -> bool:
    content = document.content
    return bool(content.strip()) if isinstance(content, str) else bool(content.size)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise MisuseError(
            f"{path} is not UTF-8 ({problem.reason} at byte {problem.start:,}); convert it, or give another file."
        ) from None


def _arrays(data: bytes, path: Path) -> list[Document]:
    try:
        array = np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise MisuseError(f"{path} is not a .npy file of integers ({problem}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim not in {1, 2}:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise MisuseError(f"{path} holds {found}; token ids are integers, [tokens] or [documents, tokens].")
    return [Document(row.astype(np.int64)) for row in np.atleast_2d(array)]


def _lines(text: str, path: Path, field: str | None, template: ChatTemplate | None) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise MisuseError(f"{where}, is not JSON ({problem}).") from None
        yield _document(_chosen(value, where, field), where, template)


def _chosen(value: object, where: str, field: str | None) -> object:
    """The part of a line's value that is its document."""
    if not isinstance(value, dict):
        return value
    names = FIELDS if field is None else (field,)
    found = next((name for name in names if name in value), None)
    if found is None:
        present = ", ".join(map(repr, value)) or "none"
        raise MisuseError(f"{where}, has no field {' or '.join(map(repr, names))}; its fields are: {present}.")
    return value[found]


def _document(value: object, where: str, template: ChatTemplate | None) -> Document:
    if isinstance(value, str):
        return Document(value)
    if isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        if any(not 0 <= item < 2**63 for item in value):
            raise MisuseError(f"{where}, has a number that is no token id; ids are integers from 0.")
        return Document(np.array(value, np.int64))
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        if template is None:
            raise MisuseError(f"{where}, is a conversation, but the model has no chat template; give plain text.")
        return Document(template.render(value, add_generation_prompt=False))
    raise MisuseError(f"{where}, is {value!r:.60}; a document is text, a list of token ids, or a list of messages.")
