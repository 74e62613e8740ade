"""`piston run` on a language model: one prompt, streamed."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piston.cli.sampling_options import add_sampling_arguments, sampling_from
from piston.cli.shared_options import load_from
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.console import note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.standard_input import text_of
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:
    from piston.runtime.generate.completion import Completion, PositionLogprobs, TokenLogprob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="what to complete; - reads standard input")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the prompt from a file")
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message into the chat template")
    add_message_arguments(parser, "with --chat: ")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a stream")
    add_sampling_arguments(parser)


def add_message_arguments(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """Declare the options for messages; `condition` begins each help text."""
    parser.add_argument("--system", metavar="TEXT", help=f"{condition}the system message")
    parser.add_argument(
        "--no-sanitize-control-tokens",
        action="store_true",
        help=f"{condition}let tokens such as <|im_end|> in a message be control tokens, not text",
    )


def check_sampling(arguments: argparse.Namespace) -> None:
    """Check sampling options before loading, which takes seconds, unless they depend on the bundle."""
    if not arguments.checkpoint_sampling:
        sampling_from(arguments, SamplingParams())


def sampling_for(arguments: argparse.Namespace, model: LanguageModel) -> SamplingParams:
    """The given options, on top of the checkpoint's settings with --checkpoint-sampling."""
    return sampling_from(arguments, model.default_sampling if arguments.checkpoint_sampling else SamplingParams())


def run(arguments: argparse.Namespace) -> int:
    """Complete the prompt."""
    text = text_of(arguments.prompt, arguments.prompt_file)
    if arguments.system is not None and not arguments.chat:
        raise MisuseError("--system needs --chat; a plain prompt has no roles.")
    if arguments.no_sanitize_control_tokens and not arguments.chat:
        raise MisuseError("--no-sanitize-control-tokens needs --chat; in a plain prompt control tokens are tokens.")
    check_sampling(arguments)
    if hasattr(arguments, "logprobs") and not arguments.json:
        raise MisuseError("--logprobs needs --json.")
    with load_from(arguments, TEXT_GENERATION) as model:
        sampling = sampling_for(arguments, model)
        prompt: Any = text
        if arguments.chat:
            sanitize = not arguments.no_sanitize_control_tokens
            prompt = model.render(_messages(text, arguments.system), sanitize_control_tokens=sanitize)
        if not hasattr(arguments, "max_tokens"):
            prompt = model.encode(prompt)
            sampling = _fitting(sampling, model.engine.cache.capacity - len(prompt))
        if arguments.json:
            completions = model.generate([prompt], sampling)
            assert isinstance(completions, list)
            print_json({"completions": [completion_to_json(completion) for completion in completions]})
        elif sampling.n > 1:
            completions = model.generate([prompt], sampling)
            assert isinstance(completions, list)
            for index, completion in enumerate(completions):
                print_text(f"[{index}] {completion.text}")
        else:
            _stream(model, prompt, sampling, quiet=arguments.quiet)
    return 0


def _fitting(sampling: SamplingParams, room: int) -> SamplingParams:
    """An answer as long as the engine holds, where nobody said how long it may be."""
    if room < max(1, sampling.min_tokens):
        return sampling  # too long in any case: the error says by how much
    return dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))


def completion_to_json(completion: "Completion") -> dict[str, Any]:
    """A completion as JSON."""
    result: dict[str, Any] = {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "prompt_tokens": completion.num_prompt_tokens,
        "prefilled_tokens": completion.num_prefilled_tokens,
        "seed": completion.seed,
        "timings": completion.timings.to_json(),
    }
    if completion.num_source_tokens:
        result["source_tokens"] = completion.num_source_tokens
    if completion.score is not None:
        result["score"] = completion.score
    if completion.drafts is not None:
        result["drafts"] = completion.drafts.to_json()
    if completion.prompt_logprobs is not None:
        result["prompt_logprobs"] = [_position(position) for position in completion.prompt_logprobs]
    if completion.logprobs is not None:
        result["logprobs"] = [_position(position) for position in completion.logprobs]
    return result


def report_speed(completion: "Completion") -> None:
    """One line about speed, for stderr."""
    timings, drafts = completion.timings, completion.drafts
    guessed = "" if drafts is None else f"{drafts.num_accepted} of {drafts.num_drafted} guessed tokens right, "
    if drafts is not None and drafts.problem is not None:
        guessed = f"none guessed ({drafts.problem}), "
    note(
        f"[{completion.num_prefilled_tokens + completion.num_source_tokens} tokens in, first answered after "
        f"{timings.time_to_first_token * 1e3:.0f} ms; {timings.num_tokens} out, "
        f"{guessed}{timings.tokens_per_second:.1f} tokens/s; ended by {completion.finish_reason or 'an interrupt'}]"
    )


def _stream(model: LanguageModel, prompt: Any, sampling: SamplingParams, *, quiet: bool) -> None:
    stream = model.stream(prompt, sampling)
    try:
        for piece in stream:
            print_text(piece, end="")
    finally:
        stream.close()
        print_text("")
        if not quiet and stream.completion.token_ids:
            report_speed(stream.completion)


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def _position(position: "PositionLogprobs") -> dict[str, Any]:
    return _token(position.chosen) | {"top": [_token(token) for token in position.top]}


def _token(token: "TokenLogprob") -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "token": token.token,
        "bytes": list(token.bytes_),
        "logprob": token.logprob,
    }
