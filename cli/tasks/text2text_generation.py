"""`piston run` on an encoder-decoder: the answer to each text."""

import argparse
from typing import TYPE_CHECKING

from piston.cli.beam_options import add_beam_arguments, beams_from
from piston.cli.encoder_options import add_text_arguments, add_truncate_argument, texts_of
from piston.cli.sampling_options import add_sampling_arguments, sampling_from
from piston.cli.shared_options import load_from
from piston.cli.tasks.text_generation import completion_to_json, report_speed
from piston.core.console import print_json, print_text
from piston.core.errors import MisuseError

if TYPE_CHECKING:
    from piston.runtime.sampling.params import SamplingParams
    from piston.runtime.tasks.text2text_generation import TextToText

TASK = "text2text-generation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    add_text_arguments(parser, "answer")
    parser.add_argument("--source-lang", metavar="CODE", help="translate from this language")
    parser.add_argument("--target-lang", metavar="CODE", help="translate into this language")
    add_truncate_argument(parser)
    parser.add_argument(
        "--split-sentences", action="store_true", help="answer a text that is too long in pieces, cut between sentences"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a stream")
    add_sampling_arguments(parser)
    add_beam_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the texts; one text is streamed."""
    texts = texts_of(arguments.text)
    if hasattr(arguments, "logprobs") and not arguments.json:
        raise MisuseError("--logprobs needs --json.")
    if (arguments.source_lang is None) != (arguments.target_lang is None):
        raise MisuseError("--source-lang and --target-lang need one another.")
    with load_from(arguments, TASK) as model:
        if arguments.split_sentences:
            language, prompt = None, ""
            if arguments.source_lang is not None:
                language, _, prompt = model.translation(arguments.source_lang, arguments.target_lang)
            texts = [piece for text in texts for piece in model.split(text, language, prompt)]
        beams = beams_from(arguments, model.default_beams if arguments.checkpoint_sampling else None)
        sampling = _sampling(arguments, model)
        if arguments.source_lang is not None:
            completions = model.translate(
                texts,
                source=arguments.source_lang,
                target=arguments.target_lang,
                sampling=sampling,
                truncate=arguments.truncate,
                beams=beams,
            )
        elif len(texts) == 1 and sampling.n == 1 and beams is None and not arguments.json:
            _stream(model, texts[0], sampling, arguments)
            return 0
        else:
            completions = model.generate(texts, sampling, truncate=arguments.truncate, beams=beams)
    if arguments.json:
        print_json({"completions": [completion_to_json(completion) for completion in completions]})
        return 0
    for completion in completions:
        print_text(completion.text)
    return 0


def _sampling(arguments: argparse.Namespace, model: "TextToText") -> "SamplingParams":
    """The given options, on top of the checkpoint's settings or of greedy ones."""
    base = model.default_sampling if arguments.checkpoint_sampling else model.sampling()
    if not arguments.checkpoint_sampling and not hasattr(arguments, "max_tokens"):
        arguments.max_tokens = max(base.max_tokens, getattr(arguments, "min_tokens", 0))
    return sampling_from(arguments, base)


def _stream(model: "TextToText", text: str, sampling: "SamplingParams", arguments: argparse.Namespace) -> None:
    stream = model.stream(text, sampling, truncate=arguments.truncate)
    try:
        for piece in stream:
            print_text(piece, end="")
    finally:
        stream.close()
        print_text("")
        if not arguments.quiet and stream.completion.token_ids:
            report_speed(stream.completion)
