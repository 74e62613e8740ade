"""Encoder-decoders: what each word of the text does to each token of the answer."""

from piston.explanation.attention import encoder_decoder_attention
from piston.explanation.generated import answer_attributions, log_probabilities
from piston.explanation.opened import Opened, as_arguments, named_tokens
from piston.explanation.result import Asked, Explanation
from piston.runtime.backends.engine import Source, encode
from piston.runtime.tasks.text2text_generation import TextToText

TAKES = {"text": True}
WRITES = True


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the greedy answer, or of another model's answer.

    Raises:
        PromptTooLongError: the text or the answer does not fit the engine.
    """
    model: TextToText = opened.model
    room = model.engine.cache.capacity - len(model.prefix)
    completion = model.generate([asked.texts["text"]], model.sampling(max_tokens=min(room, asked.max_tokens)))[0]
    ids = list(completion.token_ids) if asked.like is None else list(asked.like.fixed["token_ids"])
    tokens = named_tokens(ids, model.tokenizer)

    def read(text: str) -> list[float]:
        engine = model.engine
        slot = engine.cache.admit()
        try:
            encode(engine, slot, Source.of_text(model.tokenizer.encode(text)))
            return log_probabilities(engine.prefill(slot, [*model.prefix, *ids[:-1]], num_logits=len(ids)), ids)
        finally:
            engine.cache.release(slot)

    attributions = answer_attributions(asked, "text", model.tokenizer, tokens, read)
    more = {}
    if asked.with_attention:
        source = model.tokenizer.encode(asked.texts["text"])
        row = [*model.prefix, *ids]
        tapped = encoder_decoder_attention(
            opened.bundle,
            opened.spec,
            (source, named_tokens(source, model.tokenizer)),
            (row, named_tokens(row, model.tokenizer)),
            opened.threads,
        )
        more = as_arguments(tapped)
    return opened.explanation(
        repr(completion.text),
        [(each.of, each.value) for each in attributions],
        attributions=attributions,
        fixed={"token_ids": ids},
        **more,
    )
