"""Sampling options of the command line, with the names of vLLM and transformers; shared by `run` and `chat`."""

import argparse
from typing import Any

from piston.core.errors import MisuseError
from piston.runtime.sampling.params import SamplingParams

NUMBERS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens to generate (default 256)"),
    "min_tokens": (int, "no end before this many tokens"),
    "temperature": (float, "0 is greedy, the default"),
    "top_k": (int, "sample from the K likeliest"),
    "top_p": (float, "sample from the likeliest that hold this probability"),
    "min_p": (float, "leave out what is less likely than this share of the likeliest"),
    "typical_p": (float, "locally typical sampling"),
    "repetition_penalty": (float, "divide the logits of tokens seen, prompt included"),
    "presence_penalty": (float, "subtract once from tokens generated before"),
    "frequency_penalty": (float, "subtract for each time a token was generated"),
    "no_repeat_ngram_size": (int, "never repeat N tokens in a row"),
    "forced_bos_token_id": (int, "begin an answer with this token"),
    "forced_eos_token_id": (int, "end an answer of --max-tokens with this token"),
    "seed": (int, "same seed, same text"),
    "n": (int, "answers to the prompt"),
    "top_logprobs": (int, "with --logprobs: likeliest tokens at each position"),
    "prompt_lookup_num_tokens": (
        int,
        "guess up to N tokens from the text so far, verify them at once: same text",
    ),
}
FLAGS = {
    "include_stop_str_in_output": "keep the stop string in the text",
    "ignore_eos": "do not end at the model's end tokens",
    "logprobs": "log-probability of each token (with --json)",
    "echo": "begin the text with the prompt",
}
LISTS: dict[str, tuple[str, type, str]] = {
    "stop": ("--stop", str, "end the text before this string, which may contain special tokens (repeatable)"),
    "stop_token_ids": ("--stop-token-id", int, "end at this token (repeatable)"),
    "logprob_token_ids": ("--logprob-token-id", int, "with --logprobs: of this token at each position (repeatable)"),
    "suppress_tokens": ("--suppress-token", int, "never generate this token (repeatable)"),
    "begin_suppress_tokens": ("--begin-suppress-token", int, "never generate this token first (repeatable)"),
    "bad_words": ("--bad-word", str, "never generate this text, at the start or after a space (repeatable)"),
}
ALIASES = {
    "max_tokens": ["--max-new-tokens"],
    "min_tokens": ["--min-new-tokens"],
    "n": ["-n"],
    "prompt_lookup_num_tokens": ["--prompt-lookup"],
}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every field of SamplingParams except bad_words_ids; options that are not given keep their default."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--checkpoint-sampling", action="store_true", help="start from the checkpoint's recommended settings"
    )
    for name, (kind, text) in NUMBERS.items():
        flags = [f"--{name.replace('_', '-')}", *ALIASES.get(name, ())]
        metavar = "N" if kind is int else "X"
        group.add_argument(*flags, dest=name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)
    for name, text in FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text)
    for name, (flag, item, text) in LISTS.items():
        metavar = "TEXT" if item is str else "ID"
        group.add_argument(
            flag, dest=name, type=item, action="append", metavar=metavar, default=argparse.SUPPRESS, help=text
        )
    group.add_argument(
        "--logit-bias", action="append", metavar="ID=BIAS", default=argparse.SUPPRESS, help="add to a token's logit"
    )


def sampling_from(arguments: argparse.Namespace, base: SamplingParams) -> SamplingParams:
    """The given options on top of `base`; raises MisuseError as SamplingParams does."""
    names = [*NUMBERS, *FLAGS, *LISTS]
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if hasattr(arguments, "logit_bias"):
        given["logit_bias"] = dict(_pair(text) for text in arguments.logit_bias)
    return SamplingParams.from_mapping((base.to_json() if arguments.checkpoint_sampling else {}) | given)


def _pair(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise MisuseError(f"--logit-bias {text!r} must be ID=BIAS, such as 42=-100.") from None
