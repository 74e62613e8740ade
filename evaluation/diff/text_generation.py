"""Language models: greedy answers that differ, and the first token that does."""

from pathlib import Path

from piston.core.console import Progress
from piston.evaluation.answers import check_prompts_fit, compare_answers
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.evaluation.prompts import read_prompts
from piston.evaluation.report import Answer, Answers
from piston.runtime.model import LanguageModel

DATA = 'prompts: one a line, or records with a "prompt" or "messages"'
OPTIONS = ("answer_tokens",)


def differences(
    before: LanguageModel, after: LanguageModel, path: Path, options: DiffOptions, progress: Progress
) -> Diff:
    """Answer every prompt greedily with both; a change is the larger, the surer both models were of their token."""
    prompts = read_prompts(path)[: options.max_records]
    ids = [prompt.token_ids(after.tokenizer, after.template) for prompt in prompts]
    capacity = min(model.engine.cache.capacity for model in (before, after))
    check_prompts_fit(ids, options.answer_tokens, capacity)
    answers = compare_answers(
        after,
        before,
        prompts,
        options.answer_tokens,
        lambda done, total: progress.step("answering", done, total),
    )
    return diff_of(answers, "text-generation")


def diff_of(answers: Answers, task: str) -> Diff:
    """The answers that differ, as changes."""
    changed = [_change(number, answer) for number, answer in enumerate(answers.prompts, 1) if not answer.is_same]
    meaning = f"greedy answers of up to {answers.max_tokens} tokens that are equal"
    return Diff(
        task=task,
        num_records=answers.num_prompts,
        figures=(("equal_answers", answers.same.value, meaning),),
        changes=worst_first(changed),
    )


def _change(number: int, answer: Answer) -> Change:
    found = answer.divergence
    assert found is not None
    note = (
        f"at token {found.position + 1} {found.reference.text!r}, ahead by {found.reference.margin:.2f} nats, "
        f"became {found.candidate.text!r}, ahead by {found.candidate.margin:.2f}"
    )
    return Change(
        record=number,
        text=answer.prompt,
        before=answer.reference_text,
        after=answer.candidate_text,
        note=note,
        size=found.reference.margin + found.candidate.margin,
    )
