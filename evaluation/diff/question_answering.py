"""Extractive question answering: answers that are another part of the context."""

from pathlib import Path

from piston.core.console import Progress
from piston.core.data_files import read_text, records_of, text_field
from piston.core.errors import MisuseError
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.runtime.tasks.question_answering import Answer, QuestionAnswerer

DATA = 'records with a "question" and a "context"'


def differences(
    before: QuestionAnswerer, after: QuestionAnswerer, path: Path, options: DiffOptions, progress: Progress
) -> Diff:
    """Ask both models all questions; answers are equal if their characters are the same."""
    pairs = _pairs(path)[: options.max_records]
    answers = []
    for done, model in enumerate((before, after)):
        progress.step("answering", done, 2)
        answers.append(model.answer_all(pairs))
    changed = [
        _change(index, pairs[index][0], old, new)
        for index, (old, new) in enumerate(zip(*answers, strict=True))
        if (old.start, old.end) != (new.start, new.end)
    ]
    same = 1 - len(changed) / len(pairs)
    return Diff(
        task="question-answering",
        num_records=len(pairs),
        figures=(("equal_answers", same, "questions with the same answer"),),
        changes=worst_first(changed),
    )


def _pairs(path: Path) -> list[tuple[str, str]]:
    records = records_of(read_text(path), path)
    if not records:
        raise MisuseError(f"{path} has no records; give {DATA}, as JSON lines or CSV.")
    return [
        (text_field(record, ("question",), where), text_field(record, ("context",), where)) for where, record in records
    ]


def _change(index: int, question: str, old: Answer, new: Answer) -> Change:
    return Change(
        record=index + 1,
        text=question,
        before=old.text or "no answer",
        after=new.text or "no answer",
        note=f"scores {old.score:.3f} and {new.score:.3f}",
        size=min(old.score, new.score),
    )
