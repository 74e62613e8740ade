"""The `verify` verb: checks that a bundle answers on this machine as it did when it was built."""

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from piston.core.bundle.golden import Golden, GoldenByTarget
from piston.core.bundle.signing import Signer
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.tasks import task_module
from piston.runtime import tasks
from piston.runtime.backends.registry import select_engine
from piston.runtime.bundle import Bundle
from piston.runtime.tasks.module import TASK as MODULE
from piston.runtime.verify import Verdict, source_of, verify
from piston.runtime.verify_outputs import OutputVerdict, verify_examples, verify_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston verify`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the directory `piston build` wrote")
    parser.add_argument("--target", help="which engine of the bundle (default: the best that runs here)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the engine (default: the physical cores)"
    )
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="check the signature with this key first")
    parser.add_argument("--signature", type=Path, metavar="FILE", help="(default: BUNDLE/manifest.json.minisig)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Check the hashes, run the bundle's golden prompts, and report where answers differ."""
    progress = Progress(quiet=arguments.quiet)
    if arguments.signature is not None and arguments.public_key is None:
        raise MisuseError("--signature needs --public-key, the key that signed it.")
    signer = None if arguments.public_key is None else Signer.of(arguments.public_key, arguments.signature)
    bundle = Bundle.open(arguments.bundle, verify=False, signer=signer)
    task = task_module(tasks, bundle.manifest.task)
    has_outputs = hasattr(task, "MODEL")
    spec, _ = select_engine(bundle, arguments.target)
    expected = GoldenByTarget.read(arguments.bundle).of(spec.target)
    with progress.phase("verifying the hashes and loading"):
        model = task.open_model(bundle, target=spec.target, threads=arguments.threads)
    verdict: Verdict | OutputVerdict
    with model, progress.phase("answering the prompts"):
        dtype = str(spec.actual.get("dtype", "float32"))
        has_codes = bundle.manifest.model.scheme.startswith("w8a8")
        is_int8 = has_codes or float((spec.actual.get("linears") or {}).get("int8", 0)) > 0
        tolerance = expected.tolerance(dtype, is_int8=is_int8)
        if has_outputs or bundle.manifest.task == MODULE:
            threshold = tolerance
            compared = verify_outputs if has_outputs else verify_examples
            verdict = compared(model, expected, threshold)
        else:
            threshold = expected.threshold(dtype)
            sources = partial(source_of, directory=bundle.directory, manifest=bundle.manifest)
            verdict = verify(model.engine, model.tokenizer, expected, threshold, sources, tolerance=tolerance)
    if arguments.json:
        print_json(to_json(arguments.bundle, spec.target, expected, threshold, verdict) | {"signed": bundle.signed})
    else:
        if bundle.signed is not None:
            print_text(f"{arguments.bundle}: the signature is valid; {bundle.signed}")
        print_text(f"{arguments.bundle}: {describe(spec.target, verdict)}")
    for mismatch in verdict.mismatches:
        note(str(mismatch))
    return 0 if verdict.is_passed else 1


def describe(target: str, verdict: Verdict | OutputVerdict) -> str:
    """The verdict in one line."""
    if isinstance(verdict, OutputVerdict):
        counts = f"outputs for {verdict.num_prompts} {verdict.given} were compared, {_distance(verdict)}"
        if verdict.is_passed:
            return f"{target} answers as built; {counts}"
        return f"{target} does NOT answer as built: {len(verdict.mismatches)} {verdict.given} differ; {counts}"
    counts = (
        f"{verdict.num_decided} of {verdict.num_tokens} tokens of {verdict.num_prompts} {verdict.given} were compared"
        f"{'' if verdict.encoded is None else f'; of the outputs of the encoder {_distance(verdict.encoded)}'}"
    )
    if verdict.is_passed:
        return f"{target} answers as built; {counts}"
    if not verdict.mismatches:
        return f"{target} could not be checked: no token could be compared; build the bundle again"
    return f"{target} does NOT answer as built: {len(verdict.mismatches)} {verdict.given} differ; {counts}"


def _distance(outputs: OutputVerdict) -> str:
    return f"the largest distance is {outputs.worst:.2g}, allowed are {outputs.tolerance:.2g}"


def to_json(
    bundle: Path, target: str, expected: Golden, threshold: float, verdict: Verdict | OutputVerdict
) -> dict[str, Any]:
    """The verdict as JSON; outputs, also those of a speech model's encoder, have their distance and tolerance."""
    outputs = verdict if isinstance(verdict, OutputVerdict) else verdict.encoded
    counts: dict[str, Any] = {}
    if isinstance(verdict, Verdict):
        counts |= {"num_tokens": verdict.num_tokens, "num_decided": verdict.num_decided}
    if outputs is not None:
        counts |= {"max_distance": outputs.worst, "tolerance": outputs.tolerance}
    return {
        "bundle": str(bundle),
        "target": target,
        "passed": verdict.is_passed,
        "recorded_by": expected.by,
        "threshold": threshold,
        "num_prompts": verdict.num_prompts,
        **counts,
        "mismatches": [dataclasses.asdict(mismatch) for mismatch in verdict.mismatches],
    }
