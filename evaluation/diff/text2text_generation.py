"""Text to text: greedy answers that differ, and the first token that does."""

from pathlib import Path

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.answers import MARGINS, compare_generations
from piston.evaluation.diff import Diff, DiffOptions
from piston.evaluation.diff.text_generation import diff_of
from piston.evaluation.examples import read_texts
from piston.evaluation.tasks.text2text_generation import prepared
from piston.runtime.tasks.text2text_generation import TextToText

DATA = 'texts: one a line, or records with a "source" and maybe languages; cut at their end where too long'
OPTIONS = ("answer_tokens",)


def differences(before: TextToText, after: TextToText, path: Path, options: DiffOptions, progress: Progress) -> Diff:
    """Answer every text greedily with both; a change is the larger, the surer both models were of their token."""
    examples = read_texts(path)[: options.max_records]
    room = min(model.engine.cache.capacity - len(model.prefix) for model in (before, after))
    if options.answer_tokens > room:
        raise MisuseError(
            f"The engines hold answers of {room:,} tokens, not {options.answer_tokens:,}; lower --answer-tokens."
        )
    found, expected = (
        (model.engine, [prepared(model, example, options.answer_tokens, **MARGINS)[0] for example in examples])
        for model in (after, before)
    )
    answers = compare_generations(
        found,
        expected,
        [str(example.source) for example in examples],
        options.answer_tokens,
        after.tokenizer,
        lambda done, total: progress.step("answering", done, total),
    )
    return diff_of(answers, "text2text-generation")
