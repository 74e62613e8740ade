"""The checkpoint's tokenizer as one tokenizer.json with its template, checked against it."""

from pathlib import Path
from typing import Any

from piston.checkpoint import sentencepiece
from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.generation_defaults import GenerationDefaults
from piston.checkpoint.gguf.tokenizer import gguf_tokenizer
from piston.checkpoint.json_files import read_optional
from piston.checkpoint.quiet import quiet
from piston.core.bundle.manifest import TokenizerSpec
from piston.core.errors import CheckpointError, MisuseError
from piston.runtime.text.tokenizer import Tokenizer

FILE_NAME, TEMPLATE_NAME = "tokenizer.json", "chat_template.jinja"
ANSWERS_NAME = "answers.tokenizer.json"
SAMPLES = (
    "The capital of France is Paris.",
    "  two  spaces\n\nand a tab\t.",
    "naïve café — 1,234.5 € 你好，世界 مرحبا 👩‍👩‍👧 ก็",  # noqa: RUF001
    "def f(x):\n    return x ** 2  # comment",
    "one\r\ntwo   \t three ",
)
SOURCES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def write_tokenizer(
    checkpoint: Checkpoint, config: Any, defaults: GenerationDefaults, out: Path, chat_template: str | None = None
) -> tuple[TokenizerSpec, tuple[str, ...]]:
    """Write tokenizer.json and, if there is one, chat_template.jinja: of several the one of that name, or "default".

    The second result is what to tell the user.

    Raises:
        CheckpointError: there is no tokenizer, tokenizer.json would not give the ids transformers gives, or several
            chat templates leave open which one to take.
        MisuseError: no chat template has the name that was asked for.
    """
    num_ids = max(getattr(config, name, None) or 0 for name in ("vocab_size", "decoder_vocab_size"))
    tokenizer = save_tokenizer(checkpoint, out, num_ids)
    template = _template_of(checkpoint, tokenizer, chat_template)
    if template is not None:
        (out / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    ends, remarks = _ends(checkpoint, config, defaults, tokenizer)
    spec = TokenizerSpec(
        bos_token_id=tokenizer.bos_token_id if defaults.bos_token_id is None else defaults.bos_token_id,
        pad_token_id=tokenizer.pad_token_id if defaults.pad_token_id is None else defaults.pad_token_id,
        eos_token_ids=ends,
        special_tokens=special_tokens(tokenizer),
        has_chat_template=template is not None,
        unknown_ids=_unknown_ids(tokenizer, num_ids),
    )
    return spec, remarks


def special_tokens(tokenizer: Any) -> dict[str, str]:
    """Those that have a text, by role, such as bos_token."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def save_tokenizer(checkpoint: Checkpoint, out: Path, num_ids: int | None = None) -> Any:
    """Write tokenizer.json, and that of answers where it is another; returns transformers' tokenizer.

    `num_ids` are the tokens of the model. Raises CheckpointError as `write_tokenizer` does.
    """
    if not checkpoint.gguf and not any((checkpoint.directory / name).is_file() for name in SOURCES):
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer ({', '.join(SOURCES)}); copy it into the checkpoint."
        )
    tokenizer, path = load_tokenizer(checkpoint, num_ids), out / FILE_NAME
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.save(str(path), pretty=False)
    elif num_ids is not None and sentencepiece.is_convertible(tokenizer):
        source, answers = sentencepiece.converted(tokenizer, num_ids)
        source.save(str(path), pretty=False)
        if answers is not None:
            answers.save(str(out / ANSWERS_NAME), pretty=False)
    else:
        raise CheckpointError(f"{type(tokenizer).__name__} of {checkpoint.name} has no tokenizer.json form.")
    written = Tokenizer.open(path, unknown_ids=_unknown_ids(tokenizer, num_ids))
    for text in SAMPLES:
        if written.encode(text) != list(tokenizer(text)["input_ids"]):
            raise CheckpointError(
                f"tokenizer.json of {checkpoint.name} would split {text!r} differently than transformers."
            )
    return tokenizer


def load_tokenizer(checkpoint: Checkpoint, num_ids: int | None = None) -> Any:
    """Transformers' tokenizer; of NLLB and mBART with their languages, which need the number of the model's tokens.

    Raises:
        CheckpointError: it cannot be read, or it is not known which ids its languages have.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            if checkpoint.header is not None:
                return gguf_tokenizer(checkpoint.header)
            tokenizer = AutoTokenizer.from_pretrained(**checkpoint.arguments)
    except CheckpointError:
        raise
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise CheckpointError(f"The tokenizer of {checkpoint.name} cannot be read: {lines[0]}") from problem
    if not _has_unnumbered_languages(checkpoint, tokenizer):
        return tokenizer
    file = checkpoint.directory / type(tokenizer).vocab_files_names["vocab_file"]
    return sentencepiece.with_languages(tokenizer, file, num_ids or 0)


def _has_unnumbered_languages(checkpoint: Checkpoint, tokenizer: Any) -> bool:
    """Whether no file of a model of several languages says which ids they have."""
    has_languages = hasattr(tokenizer, "set_src_lang_special_tokens") and hasattr(tokenizer, "backend_tokenizer")
    if not has_languages or checkpoint.gguf or (checkpoint.directory / FILE_NAME).is_file():
        return False
    path = checkpoint.directory / "tokenizer_config.json"
    return "added_tokens_decoder" not in read_optional(path)


def _unknown_ids(tokenizer: Any, num_ids: int | None) -> tuple[int, ...]:
    """See piston.runtime.text.tokenizer; nothing for tokenizers that transformers itself has as tokenizer.json."""
    if num_ids is None or not sentencepiece.is_convertible(tokenizer):
        return ()
    return num_ids, tokenizer.unk_token_id


def _template_of(checkpoint: Checkpoint, tokenizer: Any, name: str | None) -> str | None:
    templates = tokenizer.chat_template or {}
    if not isinstance(templates, dict):
        templates = {"default": templates}
    wanted = "default" if name is None else name
    if wanted in templates:
        return templates[wanted] or None
    present = ", ".join(map(repr, sorted(templates))) or "none"
    if name is not None:
        raise MisuseError(f"{checkpoint.name} has no chat template {name!r}; it has: {present}.")
    if templates:
        raise CheckpointError(
            f"{checkpoint.name} has chat templates, but none called 'default': {present}; choose one of them with "
            "--chat-template NAME."
        )
    return None


def _ends(
    checkpoint: Checkpoint, config: Any, defaults: GenerationDefaults, tokenizer: Any
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The tokens that end an answer: those that end transformers' generate, which does not ask the tokenizer."""
    ends, named = defaults.eos_token_ids, tokenizer.eos_token_id
    if checkpoint.gguf:  # has no generation settings
        value = getattr(config, "eos_token_id", None)
        found = {value} if isinstance(value, int) else set(value or ())
        return tuple(sorted(found | {*ends} | ({named} - {None}))), ()
    if not ends:
        return ends, ("the checkpoint's generation settings name no end token: answers end at --max-tokens only.",)
    if named is not None and named not in ends:
        text = f"the tokenizer's end token {tokenizer.eos_token!r} ({named}) does not end answers, as in transformers: "
        return ends, (f"{text}the checkpoint's generation settings name {', '.join(map(str, ends))}.",)
    return ends, ()
