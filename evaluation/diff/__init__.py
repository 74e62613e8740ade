"""What changed between two models of one task, record by record: one module a task, found by name (piston.core.tasks).

A module has

    DATA: str  # what a record of --data is, for people
    OPTIONS: tuple[str, ...]  # fields of DiffOptions that it reads besides max_records; left out: none
    differences(before, after, path, options, progress) -> Diff  # two loaded models on the records of a file

Figures that gates bound are those of `piston eval`; this is for looking at the cases behind them.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["same", "removed", "added"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """How much to compare. `top` is k of neighbours and ranks, `answer_tokens` the length of generated answers."""

    top: int = 10
    answer_tokens: int = 48
    max_records: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One record whose result changed.

    Args:
        record: its number in the file, from 1.
        text: what was given to the models.
        before: the result of the first model.
        after: the result of the second.
        note: what else tells how much it means, such as the margin.
        size: larger is worse; changes are listed by it.
    """

    record: int
    text: str
    before: str
    after: str
    note: str
    size: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "record": self.record,
            "text": self.text,
            "before": self.before,
            "after": self.after,
            "note": self.note,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """All that changed. `figures` are (name, value, what it means); `num_changed` of `num_records` records changed."""

    task: str
    num_records: int
    figures: tuple[tuple[str, float, str], ...]
    changes: tuple[Change, ...]

    @property
    def num_changed(self) -> int:
        """Records whose result is another."""
        return len(self.changes)

    def to_json(self) -> dict[str, Any]:
        """As docs/schemas/diff.json has it."""
        return {
            "task": self.task,
            "num_records": self.num_records,
            "num_changed": self.num_changed,
            "figures": {name: value for name, value, _ in self.figures},
            "changes": [change.to_json() for change in self.changes],
        }


def worst_first(changes: list[Change]) -> tuple[Change, ...]:
    """Changes in the order in which people should look at them."""
    return tuple(sorted(changes, key=lambda change: (-change.size, change.record)))


def word_diff(before: str, after: str) -> list[tuple[Kind, str]]:
    """The words of two texts with their spaces: "same" and "removed" make the first, "same" and "added" the second."""
    left, right = _words(before), _words(after)
    parts: list[tuple[Kind, str]] = []
    for _, left_start, left_end, right_start, right_end in difflib.SequenceMatcher(
        None, left, right, autojunk=False
    ).get_opcodes():
        removed, added = "".join(left[left_start:left_end]), "".join(right[right_start:right_end])
        if removed == added:
            parts.append(("same", removed))
            continue
        parts += [("removed", removed)] if removed else []
        parts += [("added", added)] if added else []
    return parts


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
