"""The vocabulary in the keys of a GGUF file: whether it is whole, and which tokens end an answer."""

from typing import Any

from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError

PREFIX = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of a token
TYPES = {"pre": str, "add_bos_token": bool, "add_eos_token": bool, "add_space_prefix": bool}
REQUIRED = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores")}
# Tokens that end a turn in models whose files often do not say so; counted when the file marks them as control tokens.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
# In these vocabularies <|end|> closes one part of a turn, not the turn.
PARTS_OF_A_TURN = (("<|return|>", "<|call|>"), ("<|flush|>", "<|calls|>"))


def check_vocabulary(header: GgufHeader) -> dict[str, Any]:
    """The keys below tokenizer.ggml, once they fit one another and the embeddings.

    Raises:
        CheckpointError: a key is missing or damaged, or the kind of tokenizer is not supported.
    """
    keys = {key.removeprefix(PREFIX): value for key, value in header.keys.items() if key.startswith(PREFIX)}
    kind, name = keys.get("model"), header.name
    if kind not in tuple(REQUIRED):
        raise CheckpointError(
            f"The tokenizer of {name} is of kind {kind!r}, supported are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece); export the Hugging Face checkpoint it was made from."
        )
    for key, expected in TYPES.items():
        if key in keys and not isinstance(keys[key], expected):
            raise CheckpointError(f"{name}: {PREFIX}{key} is {keys[key]!r}, which is no {expected.__name__}.")
    for key in REQUIRED[kind]:
        if not isinstance(keys.get(key), list) or not keys[key]:
            raise CheckpointError(f"{name} lacks the list {PREFIX}{key}; convert the checkpoint again.")
    _check_tokens(header, keys)
    return keys


def _check_tokens(header: GgufHeader, keys: dict[str, Any]) -> None:
    """Every list has a value for each token, and every id is one of theirs."""
    name = header.name
    tokens, embedding = keys["tokens"], header.tensors.get("token_embd.weight")
    if embedding is None or embedding.shape[1:] != (len(tokens),):
        rows = "no token_embd.weight" if embedding is None else f"token_embd.weight of shape {list(embedding.shape)}"
        raise CheckpointError(f"{name} has {len(tokens):,} tokens and {rows}; it is incomplete or damaged.")
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{PREFIX}tokens of {name} has a token twice, or one that is no text; convert it again.")
    for key in ("scores", "token_type"):
        if key in keys and (not isinstance(keys[key], list) or len(keys[key]) != len(tokens)):
            raise CheckpointError(f"{PREFIX}{key} of {name} has not one value for each of {len(tokens):,} tokens.")
    for key, value in keys.items():
        if key.endswith("_token_id") and not (type(value) is int and 0 <= value < len(tokens)):
            raise CheckpointError(f"{name}: {PREFIX}{key} is {value!r}, no token of its {len(tokens):,}.")


def end_ids(header: GgufHeader) -> list[int]:
    """Every token that ends an answer: the file's eos, eot and eom, and control tokens known by their text."""
    tokens = header.keys[f"{PREFIX}tokens"]
    kinds = header.keys.get(f"{PREFIX}token_type") or [0] * len(tokens)
    ids = {text: index for index, text in enumerate(tokens)}
    stated = [f"{PREFIX}{name}_token_id" for name in ("eos", "eot", "eom")]
    found = {header.keys[key] for key in stated if key in header.keys}
    texts = set(END_TEXTS)
    if any(all(text in ids for text in both) for both in PARTS_OF_A_TURN):
        texts.discard("<|end|>")
    found |= {ids[text] for text in texts & set(ids) if kinds[ids[text]] in {CONTROL, USER_DEFINED}}
    return sorted(found)
