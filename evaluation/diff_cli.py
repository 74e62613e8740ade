"""The `diff` verb: what changed between two bundles of one task, case by case."""

import argparse
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.outputs import check_output_files, write_output
from piston.core.tasks import task_module, task_names
from piston.evaluation import diff
from piston.evaluation.diff import DiffOptions
from piston.evaluation.diff_page import lines_of, page_of
from piston.runtime.model import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston diff`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    records = "\n".join(f"  {task}: {task_module(diff, task).DATA}" for task in task_names(diff))
    parser.epilog = f"records of --data, by the task of the bundles:\n{records}"
    parser.add_argument("before", metavar="A", type=Path, help="a bundle, such as the float one or last week's")
    parser.add_argument("after", metavar="B", type=Path, help="a bundle of the same task")
    parser.add_argument(
        "--data", metavar="FILE", type=Path, required=True, help="what both are given: prompts, texts or other records"
    )
    parser.add_argument("--max-records", type=int, metavar="N", help="take only the first N records")
    parser.add_argument("--top", type=int, metavar="K", help="neighbours and ranks compared (default: 10)")
    parser.add_argument("--answer-tokens", type=int, metavar="N", help="length of generated answers (default: 48)")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="changes that are printed (default: 10)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with all changes (docs/schemas/diff.json)"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with all changes")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of each engine")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Load both, compare, print. The status is 0 whatever changed: `piston eval --require` judges."""
    for name, least in (("max_records", 1), ("top", 1), ("answer_tokens", 1), ("limit", 0)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise MisuseError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
    check_output_files({"--html": arguments.html}, [arguments.before, arguments.after, arguments.data])
    tasks = [Manifest.read(path).task for path in (arguments.before, arguments.after)]
    if tasks[0] != tasks[1]:
        raise MisuseError(
            f"{arguments.before} is for {tasks[0]} and {arguments.after} for {tasks[1]}; give two of one task."
        )
    module = task_module(diff, tasks[0])
    given = {"top": arguments.top, "answer_tokens": arguments.answer_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in getattr(module, "OPTIONS", ()):
            raise MisuseError(f"--{name.replace('_', '-')} means nothing to bundles for {tasks[0]}; leave it out.")
    options = DiffOptions(max_records=arguments.max_records, **given)
    progress = Progress(quiet=arguments.quiet)
    with ExitStack() as models:
        with progress.phase("loading"):
            paths = (arguments.before, arguments.after)
            opened = [models.enter_context(load(path, threads=arguments.threads)) for path in paths]
        for remark in () if arguments.quiet else dict.fromkeys([*opened[0].remarks, *opened[1].remarks]):
            note(remark)
        with progress.phase("comparing"):
            found = module.differences(*opened, arguments.data, options, progress)
    names = str(arguments.before), str(arguments.after)
    try:
        if arguments.html is not None:
            write_output(arguments.html, page_of(found, *names, version("piston")))
    finally:  # the changes are printed even if the file cannot be written
        if arguments.json:
            made_by = {"schema": 1, "piston": version("piston")}
            print_json({**made_by, "before": names[0], "after": names[1], **found.to_json()})
        else:
            for line in lines_of(found, *names, arguments.limit):
                print_text(line)
    return 0
