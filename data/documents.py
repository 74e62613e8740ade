"""What a data file holds: texts, conversations or token ids, one document each.

| file                                         | documents                                                           |
|----------------------------------------------|---------------------------------------------------------------------|
| `.npy`                                       | integers, [tokens] for one document or [documents, tokens]          |
| `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` | records: a string, a list of ids, a list of messages, or an object  |
| anything else                                | UTF-8 text; form feeds separate documents                           |

An object's document (a row's, in a table) is its `field`, or if none is named "messages" or "text". Messages become
text through the checkpoint's chat template.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.data_files import as_text, field_of, records_of
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
    if path.suffix.lower() == ".npy":
        documents = _arrays(data, path)
    else:
        text = as_text(data, path)
        if (records := records_of(text, path)) is None:
            documents = [Document(part) for part in text.split(SEPARATOR)]
        else:
            names = FIELDS if field is None else (field,)
            values = [
                (field_of(record, names, where, "choose one by --field NAME"), where) for where, record in records
            ]
            documents = [_document(value, where, template) for value, where in values]
    kept = [document for document in documents if _is_filled(document)]
    if not kept:
        raise MisuseError(f"{path} holds no data; give a file with text or token ids.")
    return kept


def _is_filled(document: Document) -> bool:
    content = document.content
    return bool(content.strip()) if isinstance(content, str) else bool(content.size)


def _arrays(data: bytes, path: Path) -> list[Document]:
    try:
        array = np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise MisuseError(f"{path} is not a .npy file of integers ({problem}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim not in {1, 2}:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise MisuseError(f"{path} holds {found}; token ids are integers, [tokens] or [documents, tokens].")
    return [Document(row.astype(np.int64)) for row in np.atleast_2d(array)]


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
        try:
            return Document(template.render(value, add_generation_prompt=False))
        except MisuseError as problem:
            raise MisuseError(f"{where}: {problem}") from None
    raise MisuseError(f"{where}, is {value!r:.60}; a document is text, a list of token ids, or a list of messages.")
