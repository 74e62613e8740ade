"""The `piston` command: a table of verbs, each imported when it is used, and one place that reports errors.

A verb's module has `add_arguments(parser)` and `run(arguments) -> int`.
"""

import argparse
import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from piston.cli.shared_options import add_common_arguments
from piston.core.console import LOG_FORMAT, is_coloured, logs_json, note, print_text
from piston.core.errors import Error, MissingExtraError, MisuseError
from piston.core.signals import TERMINATED, Terminated, terminating
from piston.core.standard_streams import OutputError, open_streams, silence

# verb: (module, what --help says)
VERBS = {
    "export": ("piston.export.cli", "export a checkpoint to a model directory (ONNX)"),
    "calibrate": ("piston.calibration.cli", "quantize a float model directory"),
    "distill": ("piston.distillation.cli", "train a smaller checkpoint, or one that rounds, towards a checkpoint"),
    "build": ("piston.engines.cli", "build a bundle of engines from a model directory"),
    "make": ("piston.pipeline.cli", "make a bundle from a recipe, with gates and a cache"),
    "run": ("piston.cli.run", "run a bundle once: complete a prompt, or what its task does"),
    "chat": ("piston.cli.chat", "chat with a bundle"),
    "serve": ("piston.serving.cli", "serve bundles over HTTP with an OpenAI-compatible API"),
    "eval": ("piston.evaluation.cli", "measure quality on a text, alone or against a reference"),
    "diff": ("piston.evaluation.diff_cli", "list what changed between two bundles, case by case"),
    "explain": ("piston.explanation.cli", "show what a bundle attends to, and what each word of its input changes"),
    "bench": ("piston.pipeline.bench_cli", "measure speed and memory, alone or against other systems or a baseline"),
    "verify": ("piston.cli.verify", "check that a bundle answers here as it did when it was built"),
    "sbom": ("piston.cli.sbom", "print a bundle's bill of materials (CycloneDX)"),
    "plan": ("piston.cli.plan", "show which batch and length fit into a memory, and what takes it"),
    "doctor": ("piston.cli.doctor", "find what is missing or wrong, and how to fix it"),
    "inspect": ("piston.cli.inspect", "describe a bundle, model directory, ONNX file or plan"),
}
# verb: packages it imports beyond the runtime's dependencies; the extra of the same name installs them
NEEDS = {
    "export": ("torch", "transformers", "accelerate", "gguf", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    "distill": ("torch", "transformers", "accelerate", "gguf", "onnx", "onnx_ir"),
    "build": ("onnx", "onnx_ir", "onnxruntime"),
    "calibrate": ("ml_dtypes", "onnx", "onnx_ir", "onnxruntime"),
    "explain": ("onnx", "onnx_ir", "onnxruntime"),
    "serve": ("llguidance", "msgspec", "prometheus_client", "starlette", "uvicorn"),
}
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line, as all other errors, without argparse's usage text."""

    words: Sequence[str] = ()  # that it is going to read: options may depend on what they name

    def error(self, message: str) -> NoReturn:
        """Raise the error that `main` reports."""
        hint = self.get_default("hint")  # what the words named, where options depend on it
        reason = "" if hint is None else f" ({hint})"
        raise MisuseError(f"{message}{reason}; see `{self.prog} --help`.")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help on stdout; argparse's own method ignores write errors."""
        del file
        print_text(message, end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), None)
    debug = "--debug" in words
    try:
        open_streams()
        with terminating():
            _check_words(words)
            return _dispatch(verb, words)
    except MisuseError as problem:
        return _report(problem, MISUSED, debug=debug)
    except Error as problem:
        return _report(problem, FAILED, debug=debug)
    except Terminated:
        note("terminated")
        return TERMINATED
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except OutputError as problem:
        silence(sys.stdout)
        # The reader of our output has closed it, as after `| head`: no message.
        return FAILED if problem.errno == errno.EPIPE else _report(problem, FAILED, debug=debug)
    except OSError as problem:
        return _report(problem, FAILED, debug=debug)
    except MemoryError as problem:
        reason = str(problem).rstrip(".") or "an allocation failed"
        return _report(Error(f"Out of memory: {reason}; free some, or use a machine with more."), FAILED, debug=debug)


def _check_words(words: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: neither tokenizers nor ONNX Runtime take them, not even as file names."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise MisuseError(f"The argument '{shown}' is not UTF-8; rename the file, or convert the text.") from None


def _dispatch(verb: str | None, words: list[str]) -> int:
    parser = Parser(
        prog="piston",
        description="PyTorch language models to ONNX and INT8 engines, run without PyTorch.",
        epilog="See `piston VERB --help` for the options of a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"piston {version('piston')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (_, summary) in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name == verb:
            module = _imported(name)
            sub.words = words[words.index(name) + 1 :]
            module.add_arguments(sub)
            add_common_arguments(sub)
            sub.set_defaults(run=module.run)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        verbs.choices[arguments.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.log_format is not None:
        os.environ[LOG_FORMAT] = arguments.log_format  # child processes use the same format
    logs_json()  # refuses an unknown format before any work
    _check_extra(arguments.verb)
    return int(arguments.run(arguments))


def _imported(verb: str) -> Any:
    """The verb's module; raises MissingExtraError where what it imports is not installed."""
    try:
        return importlib.import_module(VERBS[verb][0])
    except ModuleNotFoundError:
        _check_extra(verb)
        raise


def _check_extra(verb: str) -> None:
    for package in NEEDS.get(verb, ()):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"`piston {verb}` needs {package}; pip install 'piston[{verb}]'.")


def _report(problem: BaseException, status: int, *, debug: bool) -> int:
    if debug:
        raise problem
    message = " ".join(str(problem).split()) or type(problem).__name__
    if _wants_json():
        note(message, "error")
    else:
        label = "\x1b[31merror:\x1b[0m" if is_coloured(sys.stderr) else "error:"
        note(f"{label} {message}")
    return status


def _wants_json() -> bool:
    """As `logs_json`, but an unknown format is reported as text."""
    try:
        return logs_json()
    except MisuseError:
        os.environ.pop(LOG_FORMAT)
        return False


if __name__ == "__main__":
    sys.exit(main())
