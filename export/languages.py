"""What a checkpoint knows of languages: codes with their tokens, where a code goes, prompts of translations."""

from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.quiet import quiet

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LANGUAGE = -1  # in a frame: the token of the source's language


def language_settings(checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Settings of a manifest, those alone that the checkpoint has.

    `languages` are token ids by code, `source_frame` the tokens before and after a source, with LANGUAGE in the place
    of its language; `prompts` are what the checkpoint's task_specific_params put in front of a text, by name.
    """
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(**checkpoint.arguments)
    tasks = getattr(config, "task_specific_params", None) or {}
    prompts = {name: options["prefix"] for name, options in tasks.items() if options.get("prefix")}
    return _of_tokenizer(tokenizer) | ({"prompts": prompts} if prompts else {})


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    named = {getattr(tokenizer, name, None) for name in NAMED}
    languages = {
        str(token): int(tokenizer.convert_tokens_to_ids(token))
        for token in tokenizer.all_special_tokens
        if token not in named
    }
    if not languages:
        return {}
    code, token_id = next(iter(languages.items()))
    tokenizer.set_src_lang_special_tokens(code)
    frame = {
        name: [LANGUAGE if token == token_id else int(token) for token in tokens]
        for name, tokens in (("before", tokenizer.prefix_tokens), ("after", tokenizer.suffix_tokens))
    }
    return {"languages": languages, "source_frame": frame}
