"""Files of text and of records that users name: prompts, texts to score, calibration data.

| file                | records                                                                                |
|---------------------|----------------------------------------------------------------------------------------|
| `.jsonl`, `.ndjson` | one JSON value a line                                                                  |
| `.json`             | the items of an array, or the whole if it is none; JSON values one a line as well      |
| `.csv`, `.tsv`      | rows: objects whose fields the first row names; "messages" holds JSON, others text     |
| anything else       | none: it is text                                                                       |

Suffixes count in any case. All of them are UTF-8, with or without a byte order mark; line ends stay as they are.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from piston.core.errors import MisuseError
from piston.core.unicode import check_unicode, check_unicode_in

BYTE_ORDER_MARK = "\ufeff"
_LINES, _DELIMITERS = {".jsonl", ".ndjson"}, {".csv": ",", ".tsv": "\t"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # and UTF-32
_UNPACK, _EXPORT = "unpack it first", "convert it to JSON lines (.jsonl) first"
# How binary files begin that people keep text in, and what to do with them.
_SIGNATURES = {
    b"\x1f\x8b": ("gzip", _UNPACK),
    b"BZh": ("bzip2", _UNPACK),
    b"\xfd7zXZ": ("xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _UNPACK),
    b"7z\xbc\xaf": ("7-Zip", _UNPACK),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"PAR1": ("Parquet", _EXPORT),
    b"ARROW1": ("Arrow", _EXPORT),
    b"Obj\x01": ("Avro", _EXPORT),
    b"SQLite format 3": ("an SQLite database", _EXPORT),
    b"%PDF": ("PDF", "give its text"),
    b"\x93NUMPY": ("a NumPy array", "give it the suffix .npy where token ids are taken"),
}

Record = tuple[str, object]


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that the user named; raises MisuseError."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise MisuseError(f"Cannot read {path}: {problem.strerror}.") from None


def read_text(path: Path) -> str:
    """The text of a file that the user named; raises MisuseError."""
    return as_text(read_bytes(path), path)


def as_text(data: bytes, name: str | Path) -> str:
    """Decode UTF-8 without its byte order mark; raises MisuseError naming what it is instead."""
    if data.startswith(_UTF_16):
        raise MisuseError(f"{name} is not UTF-8 but UTF-16 or UTF-32; convert it, as by `iconv -f UTF-16 -t UTF-8`.")
    try:
        return check_text(data.decode("utf-8-sig"), name)
    except (UnicodeDecodeError, MisuseError) as problem:
        for signature, (kind, remedy) in _SIGNATURES.items():
            if data.startswith(signature):
                raise MisuseError(f"{name} is not UTF-8 text but {kind}; {remedy}.") from None
        if not isinstance(problem, UnicodeDecodeError):
            raise
        raise MisuseError(
            f"{name} is not UTF-8 ({problem.reason} at byte {problem.start:,}); convert it, or give another file."
        ) from None


def check_text(text: str, name: str | Path) -> str:
    """Return the text; raises MisuseError if it has NUL characters or unpaired surrogates."""
    if (place := text.find("\0")) >= 0:
        raise MisuseError(f"{name} is not UTF-8 text: character {place:,} is NUL, as in UTF-16 and binary files.")
    return check_unicode(text, str(name))


def has_records(path: Path) -> bool:
    """Whether a file of this name has records, and is not plain text."""
    return path.suffix.lower() in {*_LINES, *_DELIMITERS, ".json"}


def records_of(text: str, path: Path, header: Sequence[str] | None = None) -> list[Record] | None:
    """The records of a file with their places, such as "FILE, line 3"; None for a file of plain text.

    `header` names the columns of a table whose first row does not.

    Raises:
        MisuseError: the file is not what its suffix says; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix in _LINES:
        return list(_lines(text, path))
    if suffix == ".json":
        return list(_items(text, path))
    return _rows(text, path, _DELIMITERS[suffix], header) if suffix in _DELIMITERS else None


def field_of(record: object, names: Sequence[str], where: str, remedy: str = "rename one of them") -> Any:
    """A record that is not an object, or the first of the named fields that it has; `remedy` ends the error message.

    Raises:
        MisuseError: it has none of them, or its "messages" is not a list.
    """
    if not isinstance(record, dict):
        return record
    found = next((name for name in names if name in record), None)
    if found is None:
        present = ", ".join(f"{name!r:.40}" for name in record) or "none"
        raise MisuseError(
            f"{where}, has no field {' or '.join(map(repr, names))}; its fields are: {present}; {remedy}."
        )
    if found == "messages" and not isinstance(record[found], list):
        raise MisuseError(f'{where}: "messages" must be a list, not {record[found]!r:.60}.')
    return record[found]


def text_field(record: object, names: Sequence[str], where: str) -> str:
    """The text in the first of the named fields that an object has.

    Raises:
        MisuseError: it is no object, has none of the fields, or something else than a text in it.
    """
    value = field_of(record, names, where) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise MisuseError(f"{where}: {names[0]} must be a text, it is {value!r:.60}.")
    return value


def texts_of(path: Path, names: Sequence[str] = ("text",)) -> list[str]:
    """The texts of a file: its lines that are not empty, or the first of the named fields of its records.

    Raises:
        MisuseError: the file cannot be read, a record has no such field or something else than text in it, or there is
            no text.
    """
    content = read_text(path)
    records = records_of(content, path)
    if records is None:
        texts = lines_of(content)
    else:
        texts = []
        for where, record in records:
            value = field_of(record, names, where)
            if not isinstance(value, str):
                raise MisuseError(f"{where}, has {value!r:.60} where a text is needed.")
            texts.append(value)
    if not texts:
        raise MisuseError(f"{path} holds no text; write one on each line.")
    return texts


def lines_of(text: str) -> list[str]:
    """The lines that are not empty. Only line feeds end one, with or without CR: a text may hold U+2028 and others."""
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _lines(text: str, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parsed(line, where)


def _items(text: str, path: Path) -> Iterator[Record]:
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        if problem.msg != "Extra data":
            raise MisuseError(f"{path} is not JSON ({problem}).") from None
        yield from _lines(text, path)
    except (ValueError, RecursionError) as problem:
        raise MisuseError(f"{path} is not JSON ({problem}).") from None
    else:
        for number, item in enumerate(value if isinstance(value, list) else [value], 1):
            where = f"{path}, item {number}"
            yield where, _unicode(item, where)


def first_row(text: str, path: Path) -> list[str]:
    """The first row of a table, which names its columns or does not; none of other files."""
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        return []
    try:
        return next(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
    except csv.Error:  # `records_of` names what is wrong
        return []


def _rows(text: str, path: Path, delimiter: str, header: Sequence[str] | None) -> list[Record]:
    limit = csv.field_size_limit(max(len(text), 1))  # a document may be longer than the module's 131,072 characters
    try:
        reader = csv.DictReader(StringIO(text, newline=""), header, delimiter=delimiter, strict=True)
        return [_row(row, reader, path) for row in reader]
    except csv.Error as problem:
        raise MisuseError(f"{path} is not a table with {delimiter!r} between columns ({problem}).") from None
    finally:
        csv.field_size_limit(limit)


def _row(row: dict[str, Any], reader: "csv.DictReader[str]", path: Path) -> Record:
    where = f"{path}, line {reader.line_num}"
    if None in row or None in row.values():
        raise MisuseError(
            f"{where}, has a different number of columns than the first row, {len(reader.fieldnames or ())}."
        )
    return where, row | {name: _parsed(row[name], where) for name in ("messages",) if name in row}


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise MisuseError(f"{where}, is not JSON ({problem}).") from None
    return _unicode(value, where)


def _unicode(value: Any, where: str) -> Any:
    try:
        check_unicode_in(value, f"{where}:")
    except RecursionError:
        raise MisuseError(f"{where}, is JSON of too many levels.") from None
    return value
