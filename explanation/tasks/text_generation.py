"""Language models: what each word of the prompt does to each token of the answer."""

from piston.explanation.attention import decoder_attention
from piston.explanation.generated import answer_attributions, log_probabilities
from piston.explanation.opened import Opened, as_arguments, named_tokens
from piston.explanation.result import Asked, Explanation
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams

TAKES = {"prompt": True}
WRITES = True


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the greedy answer, or of another model's answer.

    Raises:
        PromptTooLongError: prompt and answer do not fit the engine.
    """
    model: LanguageModel = opened.model
    prompt_ids = model.encode(asked.texts["prompt"])
    completion = model.generate(asked.texts["prompt"], SamplingParams(max_tokens=asked.max_tokens))
    assert not isinstance(completion, list)
    ids = list(completion.token_ids) if asked.like is None else list(asked.like.fixed["token_ids"])
    tokens = named_tokens(ids, model.tokenizer)

    def read(prompt: str) -> list[float]:
        engine, before = model.engine, model.encode(prompt)
        slot = engine.cache.admit()
        try:
            logits = engine.prefill(slot, [*before, *ids[:-1]], num_logits=len(ids))
            return log_probabilities(logits, ids)
        finally:
            engine.cache.release(slot)

    attributions = answer_attributions(asked, "prompt", model.tokenizer, tokens, read)
    more = {}
    if asked.with_attention:
        row = [*prompt_ids, *ids]
        shown = named_tokens(row, model.tokenizer)
        more = as_arguments(decoder_attention(opened.bundle, opened.spec, row, shown, opened.threads))
    return opened.explanation(
        repr(completion.text),
        [(each.of, each.value) for each in attributions],
        attributions=attributions,
        fixed={"token_ids": ids},
        **more,
    )
