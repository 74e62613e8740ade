"""The `eval` verb: measures quality on a text, alone or against a reference."""

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.gates import Gate, Metric, add_gate_arguments, gates_of, tell_gates
from piston.core.given import given_option
from piston.core.outputs import check_output_files, write_output
from piston.evaluation.answers import check_prompts_fit
from piston.evaluation.corpus import Corpus, read_corpus
from piston.evaluation.evaluate import EvalOptions, check_length, evaluate
from piston.evaluation.html import page_of
from piston.evaluation.metrics import METRICS, measured
from piston.evaluation.prompts import DEFAULT_PROMPTS, Prompt, read_prompts
from piston.evaluation.report import Report
from piston.evaluation.subject import Subject
from piston.evaluation.table import lines_of
from piston.evaluation.task_cli import has_figures
from piston.evaluation.task_cli import run as run_task
from piston.evaluation.windows import Windowing

# Options that only language models have, with their defaults.
OF_LANGUAGE_MODELS = {
    "--window": 512,
    "--stride": 256,
    "--max-tokens": None,
    "--prompts": None,
    "--answer-tokens": 48,
}
_SLOTS = 4  # answers decoded together
_EPILOG = """windows: {rule}.

gates: --require 'ppl<=2%' (over the reference), 'ppl<=30', 'kl<=0.02', 'kl_p99<=0.5', 'top1>=99%', 'answers>=50%';
a gate that is not met exits with 1.

Of other tasks than text-generation --data has labelled examples (docs/tasks.md), or texts or audio where --reference
is given: 'accuracy>=-0.5%' (change from the reference's), 'f1>=90%', 'wer<=6%', 'chrf>=-1%', 'agreement>=99%',
'kl<=0.01'."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG.format(rule=Windowing().rule)
    parser.add_argument("path", metavar="PATH", type=Path, help="a bundle, or a model directory (which runs unlowered)")
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        required=True,
        help='the text; .jsonl, .json, .csv and .tsv have a "text" in each record',
    )
    parser.add_argument(
        "--reference", metavar="PATH", type=Path, help="compare with this model, usually the float bundle"
    )
    parser.add_argument("--window", type=int, default=512, metavar="W", help="positions of a window (default: 512)")
    parser.add_argument("--stride", type=int, default=256, metavar="S", help="tokens between windows (default: 256)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="score only the first N tokens of the text")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='prompts to answer with both, one a line or records with a "prompt" or "messages" (default: 12)',
    )
    parser.add_argument(
        "--answer-tokens", type=int, default=48, metavar="N", help="length of an answer; 0: no answers (default: 48)"
    )
    add_gate_arguments(parser, "'ppl<=2%'", "--fail-on")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object (docs/schemas/eval.json; of other tasks than text-generation eval-tasks.json)",
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with charts")
    parser.add_argument("--target", help="which engine of the bundle")
    parser.add_argument("--max-length", type=int, metavar="N", help="positions to hold (default: as many as needed)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of each engine")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, judge. Everything that can be refused is refused before a model is loaded."""
    task = Manifest.read(arguments.path).task
    check_arguments(arguments, task)
    if has_figures(task):
        return run_task(arguments)
    windowing = Windowing(length=arguments.window, stride=arguments.stride)
    gates = gates_of(arguments, METRICS, "--fail-on")
    _check_options(arguments, gates)
    subjects = [Subject.read(arguments.path, arguments.target)]
    if arguments.reference is not None:
        subjects.append(Subject.read(arguments.reference))
    corpus = _corpus(arguments, subjects)
    check_length(corpus, windowing)
    prompts = _prompts(arguments)
    capacity = _capacity(arguments, subjects, prompts)
    options = EvalOptions(windowing=windowing, prompts=prompts, answer_tokens=arguments.answer_tokens)
    progress = Progress(quiet=arguments.quiet)
    num_slots = min(_SLOTS, max(len(prompts), 1))
    with ExitStack() as models:
        opened = []
        with progress.phase("loading"):
            for subject in subjects:
                opened.append(subject.open(num_slots=num_slots, capacity=capacity, threads=arguments.threads))
                models.enter_context(opened[-1].model)
        report = evaluate(opened[0], opened[1] if len(opened) > 1 else None, corpus, options, progress)
    values = measured(report)
    report = dataclasses.replace(report, gates=tuple(gate.judge(values) for gate in gates))
    return _publish(report, arguments)


def check_arguments(arguments: argparse.Namespace, task: str) -> None:
    """Refuse options that are wrong for every model of a task; raises MisuseError."""
    if has_figures(task):
        if (option := given_option(arguments, OF_LANGUAGE_MODELS)) is not None:
            raise MisuseError(f"{option} is for language models, and this model is for {task}; leave it out.")
        return
    Windowing(length=arguments.window, stride=arguments.stride)
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise MisuseError(f"--max-tokens is {arguments.max_tokens}; it must be at least 1.")
    if arguments.answer_tokens < 0:
        raise MisuseError(f"--answer-tokens is {arguments.answer_tokens}; it must be at least 0.")
    if arguments.reference is None and arguments.prompts is not None:
        raise MisuseError("--prompts are answered by two models and compared; give the other as --reference.")


def _check_options(arguments: argparse.Namespace, gates: Sequence[Gate[Metric]]) -> None:
    reads = [arguments.path, arguments.data, arguments.reference, arguments.prompts]
    check_output_files({"--html": arguments.html}, reads)
    if arguments.reference is None:
        for gate in gates:
            if gate.needs_reference:
                raise MisuseError(f"--require {gate.text!r} bounds a comparison; give the other model as --reference.")
    for gate in gates:
        if gate.metric.name == "answers" and not arguments.answer_tokens:
            raise MisuseError(f"--require {gate.text!r} needs answers; raise --answer-tokens.")


def _corpus(arguments: argparse.Namespace, subjects: Sequence[Subject]) -> Corpus:
    """The text as token ids, which must be the same for candidate and reference."""
    corpora = [read_corpus(arguments.data, subject.tokenizer, arguments.max_tokens) for subject in subjects]
    if corpora[0] != corpora[-1]:
        raise MisuseError(
            f"The tokenizers of {arguments.path} and {arguments.reference} read {arguments.data} as different tokens; "
            "only models of one vocabulary can be compared."
        )
    return corpora[0]


def _prompts(arguments: argparse.Namespace) -> Sequence[Prompt]:
    prompts = DEFAULT_PROMPTS if arguments.prompts is None else read_prompts(arguments.prompts)
    return prompts if arguments.reference is not None and arguments.answer_tokens else ()


def _capacity(arguments: argparse.Namespace, subjects: Sequence[Subject], prompts: Sequence[Prompt]) -> int:
    """Positions to load with: --max-length, or as many as the windows and the answers need."""
    limit = min(subject.max_positions for subject in subjects)
    capacity = limit if arguments.max_length is None else arguments.max_length
    if capacity > limit:
        raise MisuseError(f"--max-length is {capacity:,}, but the model has {limit:,} positions; lower it.")
    if arguments.window > capacity:
        more = "lower --window" if arguments.max_length is None else "lower --window or raise --max-length"
        raise MisuseError(f"--window is {arguments.window:,}, but the engine holds {capacity:,} positions; {more}.")
    ids = [prompt.token_ids(subjects[0].tokenizer, subjects[0].template) for prompt in prompts]
    check_prompts_fit(ids, arguments.answer_tokens, capacity)
    if arguments.max_length is not None:
        return capacity
    window: int = arguments.window
    longest = max((len(item) + int(arguments.answer_tokens) for item in ids), default=0)
    return max(window, longest)


def _publish(report: Report, arguments: argparse.Namespace) -> int:
    try:
        if arguments.html is not None:
            write_output(arguments.html, page_of(report))
    finally:  # the figures are printed even if a file cannot be written
        if arguments.json:
            print_json(report.to_json())
        else:
            for line in lines_of(report):
                print_text(line)
    return tell_gates(report.gates)
