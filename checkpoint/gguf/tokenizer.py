"""The tokenizer that the keys of a GGUF file describe, as transformers' object around one tokenizer.json."""

from typing import Any

from piston.checkpoint.gguf.splits import IGNORING_MERGES, STARTING, splits_of
from piston.checkpoint.gguf.tensors import alone
from piston.checkpoint.gguf.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, check_vocabulary
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError

SPACE = "\u2581"  # as SentencePiece writes it
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(header: GgufHeader) -> Any:
    """A fast tokenizer of transformers.

    Raises:
        CheckpointError: a key is missing or damaged, or the kind of tokenizer or its split of text is not supported.
    """
    keys = check_vocabulary(header)
    tokenizer = _byte_level(header, keys) if keys["model"] == "gpt2" else _sentencepiece(header, keys)
    template = header.keys.get("tokenizer.chat_template")
    if template is None and "tokenizer.chat_templates" in header.keys:
        raise CheckpointError(f"{header.name} has named chat templates and none by default; name one in the file.")
    tokenizer.chat_template = template
    return tokenizer


def _byte_level(header: GgufHeader, keys: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    name = keys.get("pre", "default")
    tokens, kinds = keys["tokens"], keys.get("token_type") or []
    ids = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in keys["merges"]]
    for merge in merges:
        if len(merge) != 2 or not ids.keys() >= {*merge, "".join(merge)}:  # noqa: PLR2004 - a pair
            raise CheckpointError(f"The merge {' '.join(merge)!r} of {header.name} joins no tokens of its vocabulary.")
    model = models.BPE(ids, merges, ignore_merges=name in IGNORING_MERGES)
    tokenizer = Tokenizer(model)
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits_of(name, header.name)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    whole = [
        (token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind in {UNKNOWN, CONTROL, USER_DEFINED}
    ]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind != USER_DEFINED) for token, kind in whole])
    special = {role: tokens[keys[f"{key}_token_id"]] for role, key in SPECIAL.items() if f"{key}_token_id" in keys}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        add_bos_token=keys.get("add_bos_token", name in STARTING),
        add_eos_token=keys.get("add_eos_token", False),
        **({"bos_token": None, "eos_token": None} | special),
    )


def _sentencepiece(header: GgufHeader, keys: dict[str, Any]) -> Any:
    """As transformers reads it, with the space that it does not read."""
    from tokenizers import decoders, normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    with alone(header) as arguments:
        tokenizer = AutoTokenizer.from_pretrained(**arguments)
    backend, prefix = tokenizer.backend_tokenizer, keys.get("add_space_prefix", True)
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=False)
    else:
        replaced = normalizers.Replace(" ", SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced]) if prefix else replaced
    chain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*chain, decoders.Strip(" ", 1, 0)] if prefix else chain)
    return tokenizer
