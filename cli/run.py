"""The `run` verb: a bundle does what it is for."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from piston.cli import tasks
from piston.cli.shared_options import add_common_arguments, add_load_arguments
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.errors import Error, MisuseError
from piston.core.tasks import task_module, task_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston run`: those of every bundle, and those of the task of the bundle that is named."""
    add_load_arguments(parser)
    task, bundle = _task_of(getattr(parser, "words", ()))
    _module(task).add_arguments(parser)
    parser.set_defaults(bundle_task=task)
    if bundle is not None:
        parser.set_defaults(hint=f"{bundle} is for {task}")
    parser.epilog = f"These are the options of {task}; those of another task are shown for a bundle of that task."


def run(arguments: argparse.Namespace) -> int:
    """Answer as the task has it."""
    return int(_module(arguments.bundle_task).run(arguments))


class _Reader(argparse.ArgumentParser):
    """Finds the bundle among words that may lack what the task requires."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        options.pop("required", None)
        return super().add_argument(*names, **options)

    def add_mutually_exclusive_group(self, **options: Any) -> Any:
        options.pop("required", None)
        return super().add_mutually_exclusive_group(**options)

    def error(self, message: str) -> NoReturn:
        raise MisuseError(message)


def _task_of(words: Sequence[str]) -> tuple[str, Path | None]:
    """The task of the bundle among the words of the command line, and the bundle; text-generation where none is found.

    Which word is the bundle depends on the options, and these on its task: so the words are read with the options of
    each task, and the reading counts in which a bundle of that very task is named.
    """
    for task in task_names(tasks):
        reader = _Reader(add_help=False, allow_abbrev=False)
        add_common_arguments(reader)
        add_load_arguments(reader)
        _module(task).add_arguments(reader)
        try:
            bundle = reader.parse_known_args(list(words))[0].bundle
            if Manifest.read(bundle).task == task:
                return task, bundle
        except Error:
            continue
    return TEXT_GENERATION, None


def _module(task: str) -> Any:
    return task_module(tasks, task)
