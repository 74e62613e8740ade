"""Labelled examples of encoder tasks from JSONL, JSON, CSV and TSV (see piston.core.data_files).

| task                 | a record                                                                                      |
|----------------------|-----------------------------------------------------------------------------------------------|
| text-classification  | "text" (or "sentence"), maybe "text_pair"; "label": a name, a number, or a list of several    |
| token-classification | "tokens" and "tags" (or "ner_tags"): lists of one length; tags are names or numbers           |
| question-answering   | SQuAD's JSON, or "question", "context" and "answers"                                          |
| text-ranking         | "query", "document" and "score"                                                               |
| feature-extraction   | "sentence1", "sentence2" and "score"; a table without a header has them in this order         |
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.data_files import Record, field_of, first_row, read_text, records_of, text_field
from piston.core.errors import MisuseError
from piston.core.json_text import json_text

TEXT, PAIR, LABEL = ("text", "sentence", "text1", "sentence1"), ("text_pair", "text2", "sentence2"), ("label", "labels")
TOKENS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels")
SCORE = ("score", "label", "similarity_score")
PAIR_COLUMNS = 3  # of a table without a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A text, or two that are read together, with its labels by name; of a regression with its value."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """Words with their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question with its right answers; none where the context does not have one."""

    question: str
    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Two texts with a score: the second one's relevance to the first, or how alike they are."""

    first: str
    second: str
    score: float


def read_labelled(path: Path, labels: Sequence[str], *, is_regression: bool = False) -> list[Labelled]:
    """Texts with labels of the model. Raises MisuseError for a file of another form, or an unknown label."""
    found = []
    for where, record in _records(path):
        texts = [text_field(record, TEXT, where)]
        if isinstance(record, dict) and (pair := next((name for name in PAIR if name in record), None)):
            texts.append(text_field(record, (pair,), where))
        label = field_of(record, LABEL, where)
        if is_regression:
            found.append(Labelled(texts=tuple(texts), value=_number(label, where)))
        else:
            several = label if isinstance(label, list) else [label]
            found.append(Labelled(texts=tuple(texts), labels=tuple(_name(item, labels, where) for item in several)))
    return found


def read_tagged(path: Path, labels: Sequence[str]) -> list[Tagged]:
    """Words with tags of the model; errors as `read_labelled`."""
    found = []
    for where, record in _records(path):
        words, tags = (field_of(record, names, where) for names in (TOKENS, TAGS))
        is_list = isinstance(words, list) and isinstance(tags, list)
        if not is_list or not words or len(words) != len(tags) or not all(isinstance(word, str) for word in words):
            raise MisuseError(f"{where}: tokens and tags must be lists of one length, and tokens be strings.")
        found.append(Tagged(words=tuple(words), tags=tuple(_name(tag, labels, where) for tag in tags)))
    return found


def read_answered(path: Path) -> list[Answered]:
    """SQuAD's JSON, or records; errors as `read_labelled`."""
    found = []
    for where, record in _squad(path):
        question, context = (text_field(record, (name,), where) for name in ("question", "context"))
        answers = field_of(record, ("answers",), where)
        texts = answers.get("text", []) if isinstance(answers, dict) else answers
        if isinstance(texts, list):
            texts = [item.get("text") if isinstance(item, dict) else item for item in texts]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise MisuseError(f"{where}: answers must be texts.")
        found.append(Answered(question=question, context=context, answers=tuple(texts)))
    return found


def read_scored(path: Path, first: Sequence[str], second: Sequence[str]) -> list[Scored]:
    """Pairs of texts with scores; `first` and `second` are names of their fields. Errors as `read_labelled`."""
    found = []
    names = first_row(read_text(path), path)
    has_header = len(names) != PAIR_COLUMNS or bool({*names} & {*first, *second}) or not _is_number(names[2])
    records = _records(path, None if has_header else (first[0], second[0], SCORE[0]))
    for where, record in records:
        texts = text_field(record, first, where), text_field(record, second, where)
        score = _number(field_of(record, SCORE, where), where)
        found.append(Scored(first=texts[0], second=texts[1], score=score))
    return found


def _records(path: Path, header: Sequence[str] | None = None) -> list[Record]:
    records = records_of(read_text(path), path, header)
    if not records:
        kind = "no records" if records is None else "nothing"
        raise MisuseError(f"{path} has {kind}; labelled examples are .jsonl, .json, .csv or .tsv (docs/tasks.md).")
    return records


def _squad(path: Path) -> list[Record]:
    records = _records(path)
    if len(records) != 1 or not isinstance(records[0][1], dict) or "data" not in records[0][1]:
        return records
    try:
        return [
            (f"{path}, question {item.get('id')}", {**item, "context": paragraph["context"]})
            for article in records[0][1]["data"]
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as problem:
        raise MisuseError(f"{path} is not in SQuAD's form ({problem!r}).") from None


def _name(label: Any, labels: Sequence[str], where: str) -> str:
    """The label's name; numbers count from 0, and "0.0" is one."""
    if isinstance(label, str) and label in labels:
        return label
    if _is_number(label) and float(label).is_integer() and 0 <= float(label) < len(labels):
        return labels[int(float(label))]
    raise MisuseError(f"{where}: the model has no label {label!r:.60}; it has {json_text(labels)[:200]}.")


def _number(value: Any, where: str) -> float:
    if not _is_number(value):
        raise MisuseError(f"{where}: the score must be a number, it is {value!r:.60}.")
    return float(value)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
