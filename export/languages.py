"""What a checkpoint knows of languages: codes with their tokens, where a code goes, prompts of translations."""

from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.tokenizer import load_tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LANGUAGE = -1  # in a frame: the token of the source's language


def language_settings(checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Settings of a manifest, those alone that the checkpoint has.

    `languages` are token ids by code, `source_frame` the tokens before and after a source, with LANGUAGE in the place
    of its language; `prompts` are what the checkpoint's task_specific_params put in front of a text, by name.
    """
    tokenizer = load_tokenizer(checkpoint, int(config.vocab_size))
    tasks = getattr(config, "task_specific_params", None) or {}
    prompts = {name: options["prefix"] for name, options in tasks.items() if options.get("prefix")} | _pairs(tokenizer)
    return _of_tokenizer(tokenizer, int(config.vocab_size)) | ({"prompts": prompts} if prompts else {})


def _pairs(tokenizer: Any) -> dict[str, str]:
    """Prompts of the pairs that Marian's tokenizer translates: the code of the answer's language, if it has several."""
    source, target = getattr(tokenizer, "source_lang", None), getattr(tokenizer, "target_lang", None)
    codes = getattr(tokenizer, "supported_language_codes", None) or ()
    targets = {code.strip("<>"): f"{code} " for code in codes} or ({target: ""} if target else {})
    return {f"translation_{source}_to_{code}": prompt for code, prompt in targets.items()} if source else {}


def _of_tokenizer(tokenizer: Any, num_ids: int) -> dict[str, Any]:
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    named = {getattr(tokenizer, name, None) for name in NAMED}
    tokens = {token: token for token in tokenizer.all_special_tokens if token not in named}
    codes = getattr(tokenizer, "lang_code_to_token", None) or tokens  # M2M-100: "en" is the token __en__
    ids = {str(code): int(tokenizer.convert_tokens_to_ids(token)) for code, token in codes.items()}
    languages = {code: token_id for code, token_id in ids.items() if token_id < num_ids}
    if not languages:
        return {}
    code, token_id = next(iter(languages.items()))
    tokenizer.set_src_lang_special_tokens(code)
    frame = {
        name: [LANGUAGE if token == token_id else int(token) for token in tokens]
        for name, tokens in (("before", tokenizer.prefix_tokens), ("after", tokenizer.suffix_tokens))
    }
    return {"languages": languages, "source_frame": frame}
