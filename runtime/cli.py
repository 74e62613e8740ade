"""The `piston` command: a table of verbs, each imported when it is used, and one way to report errors.

A verb's module has `add_arguments(parser)` and `run(arguments) -> int`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from piston.runtime.console import is_coloured, note
from piston.runtime.errors import Error, MisuseError

# verb: (module, what --help says)
VERBS = {
    "export": ("piston.export.cli", "a checkpoint becomes a model directory (ONNX)"),
    "build": ("piston.engines.cli", "a model directory becomes a bundle of engines"),
    "run": ("piston.runtime.run_cli", "complete a prompt with a bundle"),
    "chat": ("piston.runtime.chat_cli", "talk with a bundle"),
    "inspect": ("piston.runtime.inspect_cli", "what a model directory or bundle is made of"),
}
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status is 0 done, 1 failed, 2 misused."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), None)
    debug = "--debug" in words
    try:
        return _dispatch(verb, words)
    except MisuseError as problem:
        return _report(problem, MISUSED, debug=debug)
    except Error as problem:
        return _report(problem, FAILED, debug=debug)
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; nothing to say and nobody to say it to
        return FAILED
    except OSError as problem:
        return _report(problem, FAILED, debug=debug)


def _dispatch(verb: str | None, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="piston",
        description="PyTorch language models to ONNX and INT8 engines, run without PyTorch.",
        epilog="`piston VERB --help` explains a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"piston {version('piston')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (_, summary) in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name == verb:
            module = _load(name)
            module.add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
            sub.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


def _load(verb: str) -> ModuleType:
    name, _ = VERBS[verb]
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing in ("", "piston") and not str(problem.name).startswith(name.rpartition(".")[0]):
            raise
        extra = "export" if verb == "export" else "build"
        raise Error(
            f"`piston {verb}` needs {missing}, which is not installed; pip install 'piston[{extra}]'."
        ) from problem


def _report(problem: BaseException, status: int, *, debug: bool) -> int:
    if debug:
        raise problem
    label = "\x1b[31merror:\x1b[0m" if is_coloured(sys.stderr) else "error:"
    note(f"{label} {' '.join(str(problem).split())}")
    return status


if __name__ == "__main__":
    sys.exit(main())
