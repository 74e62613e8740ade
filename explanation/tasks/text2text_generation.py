"""Encoder-decoders: what each word of the text does to each token of the answer."""

from piston.explanation.attention import encoder_decoder_attention
from piston.explanation.generated import answer_attributions, log_probabilities
from piston.explanation.opened import Opened, as_arguments, named_tokens
from piston.explanation.result import Asked, Explanation
from piston.runtime.backends.engine import Source, encode
from piston.runtime.tasks.text2text_generation import TextToText

TAKES = {"text": True}
WRITES = True
HAS_LANGUAGES = True


def explain(opened: Opened, asked: Asked) -> Explanation:
    """Of the greedy answer, or of another model's answer; the token of a translation's language is given, not chosen.

    Raises:
        MisuseError: the model does not have the languages; the message lists what it has.
        PromptTooLongError: the text or the answer does not fit the engine.
    """
    model: TextToText = opened.model
    text, prefix = asked.texts["text"], list(model.prefix)
    language, forced, prompt = (None, None, "") if asked.languages is None else model.translation(*asked.languages)
    prefix += [] if forced is None else [forced]
    frame = model.frame(language)
    room = model.engine.cache.capacity - len(prefix)
    sampling = model.sampling(max_tokens=min(room, asked.max_tokens))
    (completion,) = model.generate([prompt + text], sampling, prefix=prefix, language=language)
    ids = list(completion.token_ids) if asked.like is None else list(asked.like.fixed["token_ids"])
    tokens = named_tokens(ids, model.tokenizer)

    def source_of(changed: str) -> list[int]:
        before, behind = frame
        return [*before, *model.tokenizer.encode(prompt + changed, add_special_tokens=False), *behind]

    def read(changed: str) -> list[float]:
        engine = model.engine
        slot = engine.cache.admit()
        try:
            encode(engine, slot, Source.of_text(source_of(changed)))
            return log_probabilities(engine.prefill(slot, [*prefix, *ids[:-1]], num_logits=len(ids)), ids)
        finally:
            engine.cache.release(slot)

    attributions = answer_attributions(asked, "text", model.tokenizer, tokens, read)
    more = {}
    if asked.with_attention:
        source, row = source_of(text), [*prefix, *ids]
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
