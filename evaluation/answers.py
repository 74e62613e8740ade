"""Greedy answers of two models to the same prompts, and the first token that differs."""

from collections.abc import Callable, Sequence
from typing import Any

from piston.core.errors import EmptyPromptError, PromptTooLongError
from piston.core.statistics import ConfidenceInterval, wilson
from piston.evaluation.prompts import Prompt
from piston.evaluation.report import Answer, Answers, Divergence, DivergingToken
from piston.runtime.backends.engine import Engine
from piston.runtime.generate.completion import Completion, PositionLogprobs
from piston.runtime.generate.generation import Generation, run
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.text.tokenizer import Tokenizer

MARGINS: Any = {"logprobs": True, "top_logprobs": 2}  # settings that tell how sure a model is of each token


def compare_answers(
    candidate: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    on_token: Callable[[int, int], None],
) -> Answers:
    """Answer every prompt greedily with both. The candidate's tokenizer and template make the ids for both."""
    ids = [prompt.token_ids(candidate.tokenizer, candidate.template) for prompt in prompts]
    sampling = SamplingParams(max_tokens=max_tokens, **MARGINS)
    found, expected = (
        (model.engine, [model.prepare(prompt_ids, sampling) for prompt_ids in ids]) for model in (candidate, reference)
    )
    shown = [prompt.shown for prompt in prompts]
    return compare_generations(found, expected, shown, max_tokens, candidate.tokenizer, on_token)


def compare_generations(
    candidate: tuple[Engine, Sequence[Generation]],
    reference: tuple[Engine, Sequence[Generation]],
    shown: Sequence[str],
    max_tokens: int,
    tokenizer: Tokenizer,
    on_token: Callable[[int, int], None],
) -> Answers:
    """Run the prepared generations of both, with MARGINS among their settings; `shown` is what people see of each."""
    total = 2 * len(shown) * max_tokens
    expected = _completions(*reference, lambda done: on_token(done, total))
    found = _completions(*candidate, lambda done: on_token(total // 2 + done, total))
    answers = tuple(_answer(*item, tokenizer) for item in zip(shown, expected, found, strict=True))
    num_same = sum(answer.is_same for answer in answers)
    same = ConfidenceInterval(num_same / len(answers), *wilson(num_same, len(answers)))
    return Answers(num_prompts=len(answers), max_tokens=max_tokens, same=same, prompts=answers)


def check_prompts_fit(ids: Sequence[Sequence[int]], max_tokens: int, capacity: int) -> None:
    """Refuse, before loading, a prompt that is empty or leaves no room for its answer."""
    for number, prompt_ids in enumerate(ids, 1):
        if not prompt_ids:
            raise EmptyPromptError(f"Prompt {number} has no tokens; give at least one character.")
        if len(prompt_ids) + max_tokens > capacity:
            raise PromptTooLongError(
                f"Prompt {number} has {len(prompt_ids):,} tokens and its answer {max_tokens:,}, but the engine holds "
                f"{capacity:,}; shorten it, lower --answer-tokens or raise --max-length."
            )


def _completions(
    engine: Engine, generations: Sequence[Generation], on_token: Callable[[int], None]
) -> list[Completion]:
    for done, _ in enumerate(run(engine, generations), 1):
        on_token(done)
    return [generation.completion() for generation in generations]


def _answer(shown: str, reference: Completion, candidate: Completion, tokenizer: Tokenizer) -> Answer:
    pairs = zip(reference.token_ids, candidate.token_ids, strict=False)
    # Neither answer is a prefix of the other: the end token counts as a token, and both have the same limit.
    position = next((at for at, (left, right) in enumerate(pairs) if left != right), None)
    divergence = None
    if position is not None:
        assert reference.logprobs is not None
        assert candidate.logprobs is not None
        divergence = Divergence(
            position=position,
            reference=_token(reference.logprobs[position], tokenizer),
            candidate=_token(candidate.logprobs[position], tokenizer),
        )
    return Answer(prompt=shown, divergence=divergence, reference_text=reference.text, candidate_text=candidate.text)


def _token(position: PositionLogprobs, tokenizer: Tokenizer) -> DivergingToken:
    chosen, (best, second) = position.chosen, position.top
    text = tokenizer.text_of(chosen.token_id)
    return DivergingToken(token_id=chosen.token_id, text=text, margin=best.logprob - second.logprob)
