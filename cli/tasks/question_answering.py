"""`piston run` on a model that answers questions from a text."""

import argparse
import dataclasses
from pathlib import Path

from piston.cli.encoder_options import add_json_argument
from piston.cli.shared_options import load_from
from piston.core.console import print_json, print_text
from piston.core.standard_input import text_of

TASK = "question-answering"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    parser.add_argument("--question", required=True, metavar="TEXT", help="what is asked")
    context = parser.add_mutually_exclusive_group(required=True)
    context.add_argument("--context", metavar="TEXT", help="the text with the answer; - reads standard input")
    context.add_argument("--context-file", type=Path, metavar="FILE", help="read it from a file")
    parser.add_argument(
        "--allow-no-answer", action="store_true", help="answer nothing where that is most probable (SQuAD 2.0)"
    )
    parser.add_argument("--max-answer-len", type=int, default=15, metavar="N", help="tokens at most (default: 15)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens by which windows overlap (default: 128)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the question."""
    context = text_of(arguments.context, arguments.context_file)
    with load_from(arguments, TASK) as model:
        answer = model.answer(
            arguments.question,
            context,
            allow_no_answer=arguments.allow_no_answer,
            max_answer_len=arguments.max_answer_len,
            stride=arguments.stride,
        )
    if arguments.json:
        print_json(dataclasses.asdict(answer))
        return 0
    if answer.start == answer.end:
        print_text(f"no answer ({answer.score:.4f})")
    else:
        print_text(f"{answer.text} ({answer.score:.4f}, characters {answer.start} to {answer.end})")
    return 0
