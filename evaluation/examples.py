"""What encoder-decoders read, and what people answered, from files of texts, of records, and of audio.

| task                         | a record                                                                            |
|------------------------------|-------------------------------------------------------------------------------------|
| text2text-generation         | "source" (or "text"), maybe "target"; maybe "source_language" and "target_language" |
| automatic-speech-recognition | "audio": a path from the file's folder; maybe "text" and "language"                  |

A file of plain text has a source on each line, or the path of an audio file. A table of audio without a header has the
path first and the text next to it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.data_files import field_of, first_row, lines_of, read_text, records_of
from piston.core.errors import MisuseError

SOURCE = ("source", "text", "document", "input")
TARGET = ("target", "summary", "translation", "reference")
AUDIO = ("audio", "path", "file")
SPOKEN = ("text", "transcript", "sentence")
HEADER = ("audio", "text")  # of a table that has none
LISTS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"}  # suffixes of files that name audio files


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A text or the path of an audio, and the answer to it where that is known.

    `languages` are the codes of both texts where they are named; of an audio its language alone.
    """

    source: str | Path
    target: str | None = None
    languages: tuple[str, ...] = ()


def read_texts(path: Path) -> list[Example]:
    """Sources of text; raises MisuseError for a file of another form, or an empty one."""
    content = read_text(path)
    records = records_of(content, path)
    if records is None:
        found = [Example(source=line.strip()) for line in lines_of(content)]
    else:
        found = [_pair(record, where) for where, record in records]
    return _filled(found, path, "text")


def read_audio_list(path: Path) -> list[Example]:
    """Sources of audio that a file names, or the file itself; raises MisuseError as `read_texts`."""
    if path.suffix.lower() not in LISTS:
        return [Example(source=path)]
    content = read_text(path)
    records = records_of(content, path, _header_of(content, path))
    if records is None:
        found = [Example(source=path.parent / line.strip()) for line in lines_of(content)]
    else:
        found = [_clip(record, path, where) for where, record in records]
    for example in found:
        if not Path(example.source).is_file():
            raise MisuseError(
                f"{path} names {example.source}, which is no file; paths are from the folder of {path.name}."
            )
    return _filled(found, path, "audio file")


def with_targets(examples: list[Example], path: Path) -> list[Example]:
    """The examples; raises MisuseError where one has no target."""
    if missing := [example for example in examples if example.target is None]:
        raise MisuseError(
            f"{path} has no reference for {str(missing[0].source)!r:.60}; add it, or leave the source out."
        )
    return examples


def _filled(found: list[Example], path: Path, what: str) -> list[Example]:
    if not found:
        raise MisuseError(f"{path} holds no {what}; write one on each line.")
    return found


def _pair(record: object, where: str) -> Example:
    source = _text(field_of(record, SOURCE, where), SOURCE[0], where)
    target = _optional(record, TARGET, where)
    codes = [_optional(record, (name,), where) for name in ("source_language", "target_language")]
    if (codes[0] is None) != (codes[1] is None):
        raise MisuseError(f"{where}, names one language; give source_language and target_language, or neither.")
    return Example(source=source, target=target, languages=tuple(code for code in codes if code is not None))


def _clip(record: object, path: Path, where: str) -> Example:
    audio = _text(field_of(record, AUDIO, where), AUDIO[0], where)
    language = _optional(record, ("language",), where)
    return Example(
        source=path.parent / audio,
        target=_optional(record, SPOKEN, where),
        languages=() if language is None else (language,),
    )


def _header_of(content: str, path: Path) -> tuple[str, ...] | None:
    """The columns of a table without a header, whose first row begins with an audio file."""
    first = first_row(content, path)
    has_none = 1 <= len(first) <= len(HEADER) and (path.parent / first[0]).is_file()
    return HEADER[: len(first)] if has_none else None


def _optional(record: object, names: tuple[str, ...], where: str) -> str | None:
    found = {name: record[name] for name in names if name in record} if isinstance(record, dict) else {}
    return next((_text(value, name, where) for name, value in found.items()), None)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MisuseError(f"{where}: {name} must be a text, it is {value!r:.60}.")
    return value
