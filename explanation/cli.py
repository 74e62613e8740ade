"""The `explain` verb: why a bundle answers as it does, on one page."""

import argparse
import dataclasses
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.outputs import check_output_files, write_output
from piston.core.standard_input import text_of
from piston.core.tasks import task_module, task_names
from piston.explanation import tasks
from piston.explanation.attention import engine_of
from piston.explanation.opened import Opened
from piston.explanation.page import lines_of, page_of
from piston.explanation.result import Asked, Explanation
from piston.runtime import tasks as runtime_tasks
from piston.runtime.bundle import Bundle

INPUTS = ("text", "text_pair", "question", "context", "query", "document", "prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston explain`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the directory `piston build` wrote")
    for name in INPUTS:
        takers = [task for task in task_names(tasks) if name in task_module(tasks, task).TAKES]
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="TEXT", help=f"input of {', '.join(takers)}; - reads standard input"
        )
    parser.add_argument("--label", help="of text-classification: the label to explain (default: the best)")
    for name in ("source", "target"):
        parser.add_argument(f"--{name}-lang", metavar="CODE", help=f"of translators: the language of the {name}")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="of models that write: length of the answer (default 16)"
    )
    parser.add_argument(
        "--replacement",
        metavar="TEXT",
        help="written in place of a word that is left out (default: the tokenizer's mask token; else nothing)",
    )
    parser.add_argument(
        "--reference", metavar="BUNDLE", type=Path, help="explain the same answer by another bundle too"
    )
    parser.add_argument("--no-attention", action="store_true", help="only what each word changes")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write the page (HTML)")
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/schemas/explain.json)")
    parser.add_argument("--target", help="which engine of the bundle (attention: ort-cpu)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of each engine")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Explain, write the page, print."""
    check_output_files({"--output": arguments.output}, [arguments.bundle, arguments.reference])
    asked = _asked(arguments)
    progress = Progress(quiet=arguments.quiet)
    first = _explained(arguments.bundle, arguments.target, asked, arguments.threads, progress)
    found = [first]
    if arguments.reference is not None:
        found.append(
            _explained(arguments.reference, None, dataclasses.replace(asked, like=first), arguments.threads, progress)
        )
    for remark in dict.fromkeys(remark for each in found for remark in each.remarks):
        note(remark)
    names = [str(path) for path in (arguments.bundle, arguments.reference) if path is not None]
    try:
        if arguments.output is not None:
            write_output(arguments.output, page_of(dict(zip(names, found, strict=True)), version("piston")))
    finally:  # the result is printed even if the file cannot be written
        if arguments.json:
            reference = {"reference": found[1].to_json()} if len(found) > 1 else {}
            made_by = {"schema": 1, "piston": version("piston")}
            print_json({**made_by, "bundle": names[0], **first.to_json(), **reference})
        else:
            for line in lines_of(first):
                print_text(line)
    return 0


def _asked(arguments: argparse.Namespace) -> Asked:
    """The options, checked against the task of the bundles; raises MisuseError."""
    task = Manifest.read(arguments.bundle).task
    if arguments.reference is not None:
        Manifest.read(arguments.reference).require_task(task, arguments.reference)
    if task not in task_names(tasks):
        raise MisuseError(
            f"{arguments.bundle} is for {task}, which cannot be explained; tasks that can: "
            f"{', '.join(task_names(tasks))}."
        )
    module = task_module(tasks, task)
    given = {name: value for name in INPUTS if (value := getattr(arguments, name)) is not None}
    missing = [name for name, is_needed in module.TAKES.items() if is_needed and name not in given]
    if missing or any(name not in module.TAKES for name in given):
        raise MisuseError(f"{arguments.bundle} is for {task}, which is explained by {_inputs_of(task)}.")
    if arguments.label is not None and not getattr(module, "HAS_LABELS", False):
        raise MisuseError(f"--label is for text-classification, and {arguments.bundle} is for {task}; leave it out.")
    writes = getattr(module, "WRITES", False)
    if arguments.max_tokens is not None and (not writes or arguments.max_tokens < 1):
        reason = (
            f"must be at least 1, not {arguments.max_tokens}" if writes else f"is for models that write, not {task}"
        )
        raise MisuseError(f"--max-tokens {reason}.")
    languages = (arguments.source_lang, arguments.target_lang)
    if languages != (None, None) and not getattr(module, "HAS_LANGUAGES", False):
        raise MisuseError(f"--source-lang and --target-lang are for translators, and {arguments.bundle} is for {task}.")
    if languages.count(None) == 1:
        raise MisuseError("--source-lang and --target-lang need one another.")
    return Asked(
        texts={name: text_of(value) for name, value in given.items()},
        languages=None if None in languages else languages,
        label=arguments.label,
        max_tokens=16 if arguments.max_tokens is None else arguments.max_tokens,
        replacement=arguments.replacement,
        with_attention=not arguments.no_attention,
    )


def _explained(path: Path, target: str | None, asked: Asked, threads: int, progress: Progress) -> Explanation:
    bundle = Bundle.open(path, verify=False)
    spec = engine_of(bundle, target, with_attention=asked.with_attention)
    with progress.phase(f"loading {path}"):
        model = task_module(runtime_tasks, bundle.manifest.task).open_model(bundle, target=spec.target, threads=threads)
    with closing(model), progress.phase("explaining"):
        found: Explanation = task_module(tasks, bundle.manifest.task).explain(
            Opened(bundle, spec, model, threads), asked
        )
    return found


def _inputs_of(task: str) -> str:
    """As options."""
    takes = task_module(tasks, task).TAKES
    return " ".join(
        f"--{name.replace('_', '-')} TEXT" if is_needed else f"[--{name.replace('_', '-')} TEXT]"
        for name, is_needed in takes.items()
    )
