"""Rerankers that are language models: the score is how much likelier "yes" than "no" follows a prompt of the pair.

sentence-transformers (5.4) lists them in modules.json as a transformer and a LogitScore, whose config.json names the
two tokens; the prompt is the chat template, with messages of the roles "query" and "document", and of "system" with the
instruction. A checkpoint without these files is taken for one of Qwen3-Reranker, whose model card has the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.json_files import is_token_id, read_json, read_object, read_optional
from piston.checkpoint.quiet import quiet
from piston.checkpoint.task import is_causal_reranker
from piston.core.errors import CheckpointError, UnsupportedModelError
from piston.export.heads import TokenScore
from piston.export.pooling import module_path

CAUSAL = "ForCausalLM"
YES, NO = "yes", "no"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE_QUERY = "\n<Query>: "
BETWEEN = "\n<Document>: "
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SAID, QUERY, DOCUMENT = "\u2401 instruction \u2401", "\u2402 query \u2402", "\u2403 document \u2403"  # in no template


@dataclass(frozen=True, slots=True)
class CausalReranker:
    """What a checkpoint says of its prompt and tokens.

    Attributes:
        head: gives the score.
        prompt: text before the instruction, before the query, before the document, and behind that; without the first
            where there is no instruction.
        instruction: what is looked for, unless the caller says it.
        strips: whether it takes spaces off the ends of the query and the document.
        max_length: tokens of all, if that is stated.
        remarks: for the user.
    """

    head: TokenScore
    prompt: tuple[str, ...]
    instruction: str | None
    strips: bool
    max_length: int | None
    remarks: tuple[str, ...]


def read_causal_reranker(checkpoint: Checkpoint, config: Any) -> CausalReranker:
    """Read the prompt and the tokens.

    Raises:
        CheckpointError: a file is damaged, or a token that the model does not have is named.
        UnsupportedModelError: there is no prompt for pairs, or the logits are capped.
    """
    from transformers import AutoTokenizer

    if getattr(config, "final_logit_softcapping", None):
        raise UnsupportedModelError(f"{checkpoint.name} caps its logits, which reranking by two tokens does not have.")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(**checkpoint.arguments)
    if checkpoint.gguf or not is_causal_reranker(checkpoint.directory):
        found = {text: tokenizer.convert_tokens_to_ids(text) for text in (YES, NO)}
        if config.model_type != "qwen3" or None in found.values() or tokenizer.unk_token_id in found.values():
            raise UnsupportedModelError(
                f"{checkpoint.name} is a language model without modules.json of a reranker; save it by "
                "sentence-transformers with a LogitScore, and a chat template with the roles query and document."
            )
        remark = "the checkpoint has no modules.json: it is prompted as Qwen3-Reranker."
        score = TokenScore(found[YES], found[NO])
        card = (BEFORE, BEFORE_QUERY, BETWEEN, AFTER)
        return CausalReranker(score, card, INSTRUCTION, strips=False, max_length=None, remarks=(remark,))
    directory = checkpoint.directory
    path = module_path(directory, read_json(directory / "modules.json")[1]) / "config.json"
    stated = read_object(path)
    ids: list[Any] = [stated.get("true_token_id"), stated.get("false_token_id")]
    if any(not is_token_id(token_id, config.vocab_size) for token_id in ids[: 1 if ids[1] is None else 2]):
        raise CheckpointError(f"{path} names the tokens {ids}, and the model has {config.vocab_size:,}.")
    texts = read_optional(directory / "sentence_bert_config.json")
    saved = read_optional(directory / "config_sentence_transformers.json")
    instruction = (saved.get("prompts") or {}).get(saved.get("default_prompt_name"))
    options = (texts.get("processing_kwargs") or {}).get("chat_template") or {}
    prompt, strips = _prompt(checkpoint.name, tokenizer, dict(options), has_instruction=bool(instruction))
    score = TokenScore(ids[0], ids[1])
    return CausalReranker(score, prompt, instruction or None, strips, texts.get("max_seq_length"), ())


def _prompt(
    name: str, tokenizer: Any, options: dict[str, Any], *, has_instruction: bool
) -> tuple[tuple[str, ...], bool]:
    """What the chat template puts around an instruction, a query and a document, and whether it strips these."""
    options.pop("restore_suffix", None)  # sentence-transformers' own: a cut document keeps what is behind it
    marks = (
        {"system": SAID, "query": QUERY, "document": DOCUMENT}
        if has_instruction
        else {"query": QUERY, "document": DOCUMENT}
    )
    for is_flat in (True, False):
        text = _rendered(tokenizer, marks, options, is_flat=is_flat)
        places = [text.find(mark) for mark in marks.values()]
        if all(text.count(mark) == 1 for mark in marks.values()) and places == sorted(places):
            parts, rest = [], text
            for mark in marks.values():
                part, rest = rest.split(mark)
                parts.append(part)
            wide = _rendered(tokenizer, {role: f" {mark} " for role, mark in marks.items()}, options, is_flat=is_flat)
            return (*parts, rest), wide == text
    raise UnsupportedModelError(
        f"The chat template of {name} does not write {', '.join(marks)}, once each and in this order, for messages of "
        "these roles; add them to chat_template.jinja."
    )


def _rendered(tokenizer: Any, said: Mapping[str, str], options: dict[str, Any], *, is_flat: bool) -> str:
    """The template's text of messages by role; empty where it refuses them."""
    messages = [
        {"role": role, "content": text if is_flat else [{"type": "text", "text": text}]} for role, text in said.items()
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # noqa: BLE001 - whatever the template raises, it does not have these messages
        return ""
