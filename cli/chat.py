"""The `chat` verb: a conversation in the terminal that keeps its cache between turns."""

import argparse
import sys

from piston.cli.sampling_options import add_sampling_arguments
from piston.cli.shared_options import add_load_arguments, load_from
from piston.cli.tasks.text_generation import add_message_arguments, check_sampling, report_speed, sampling_for
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.console import note, print_text, reading_input
from piston.core.data_files import BYTE_ORDER_MARK
from piston.core.errors import Error, MisuseError
from piston.core.signals import Terminated
from piston.runtime.conversation import Conversation

HELP = "/reset starts again, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston chat`."""
    add_load_arguments(parser)
    add_message_arguments(parser)
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the user leaves."""
    check_sampling(arguments)
    if getattr(arguments, "logprobs", False):
        raise MisuseError("`piston chat` cannot print --logprobs; use `piston run --chat --json`.")
    if arguments.max_batch is None:
        arguments.max_batch = 1
    with load_from(arguments, TEXT_GENERATION) as model:
        sampling = sampling_for(arguments, model)
        sampling.check_token_ids(model.engine.vocab_size)
        is_person = sys.stdin.isatty()
        if is_person and not arguments.quiet:
            note(f"{model.manifest.model.name}; {HELP}")
        while True:
            with model.conversation(
                arguments.system, sampling, sanitize_control_tokens=not arguments.no_sanitize_control_tokens
            ) as conversation:
                if not _converse(conversation, prompt="> " if is_person else "", quiet=arguments.quiet):
                    return 0


def _converse(conversation: Conversation, prompt: str, *, quiet: bool) -> bool:
    """Answer lines until the end; True asks for a new conversation."""
    while True:
        try:
            with reading_input():
                line = input(prompt) if prompt else _next_line()
            line = line.removeprefix(BYTE_ORDER_MARK).strip()
        except EOFError:
            return False
        except Terminated:
            raise
        except KeyboardInterrupt:
            print_text("")
            return False
        if line == "/exit":
            return False
        if line == "/reset":
            return True
        if line == "/help":
            note(HELP)
        elif line:
            _answer(conversation, line, quiet=quiet)


def _next_line() -> str:
    """Read one line without a prompt: `input` would print to stdout even where nobody types."""
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.strip()


def _answer(conversation: Conversation, line: str, *, quiet: bool) -> None:
    pieces = conversation.say(line)
    try:
        for piece in pieces:
            print_text(piece, end="")
        print_text("")
    except KeyboardInterrupt as interrupt:
        pieces.close()
        print_text("")
        note("[stopped]")
        if isinstance(interrupt, Terminated):
            raise
    except Error as problem:
        note(f"error: {problem}")
        return
    if not quiet and conversation.completion is not None:
        report_speed(conversation.completion)
