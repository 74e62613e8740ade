"""The `distill` verb."""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.outputs import check_output_files, write_output
from piston.data.rows import BUILTIN
from piston.distillation.distill import RECIPE, distill, rank_only
from piston.distillation.importance import Ranking
from piston.distillation.options import DTYPES, DistillOptions, TrainingOptions
from piston.distillation.pruning import Goal
from piston.distillation.report import page_of
from piston.distillation.result import Distilled
from piston.distillation.scheme import SCHEMES
from piston.distillation.source import DEFAULT_LENGTH

W4_BLOCK = 128
DEFAULTS = TrainingOptions(steps=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston distill`."""
    parser.add_argument("teacher", metavar="TEACHER", help="a Hugging Face directory, a hub id, or a .gguf file")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the checkpoint to write")
    parser.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="text, JSONL or ids; or builtin (repeatable)"
    )
    student = parser.add_argument_group("student")
    student.add_argument(
        "--prune",
        action="append",
        default=[],
        metavar="GOAL",
        help="what is left: layers=N, ffn=N (channels of each MLP), heads=N (key and value heads), sparsity=2:4 "
        "(repeatable)",
    )
    student.add_argument("--student", type=Path, metavar="CONFIG", help="config.json of a student of other sizes")
    student.add_argument(
        "--scheme", choices=SCHEMES, default="fp", help="what it rounds to while it trains (default fp)"
    )
    student.add_argument(
        "--block", type=int, metavar="N", help="inputs that share a scale (w4: 128; 0: whole channels)"
    )
    student.add_argument(
        "--start", type=Path, metavar="DIR", help="begin from what `piston calibrate` made of the teacher's export"
    )
    student.add_argument("--dry-run", action="store_true", help="print the ranking that --prune goes by; train nothing")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, metavar="N", help="steps to train; 0 only makes the student")
    training.add_argument("--minutes", type=float, metavar="M", help="minutes to train")
    training.add_argument("--rows", type=int, default=DEFAULTS.rows, metavar="N", help="rows of a step (default 4)")
    training.add_argument(
        "--seq-len", type=int, metavar="N", help=f"tokens of a row (default {DEFAULT_LENGTH}, at most the model's)"
    )
    training.add_argument(
        "--layerwise",
        action="store_true",
        help="train each layer by itself, towards what the teacher's layer gives (--steps of each, --minutes of all)",
    )
    training.add_argument(
        "--lr", type=float, help="learning rate (default 1e-4); with --layerwise in steps of the grid (0.1)"
    )
    training.add_argument(
        "--scale-lr", type=float, default=DEFAULTS.scale_rate, help="of rounding scales, relative (default 1e-4)"
    )
    training.add_argument("--temperature", type=float, default=1.0, help="of both distributions (default 1)")
    training.add_argument("--hidden", type=float, default=0.0, metavar="W", help="weight of hidden states (default 0)")
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of rows (default 0)")
    training.add_argument(
        "--cache-gb", type=float, default=4.0, metavar="GB", help="of the teacher's answers kept on disk (default 4)"
    )
    training.add_argument(
        "--save-every", type=float, default=DEFAULTS.save_every, metavar="M", help="minutes between states (default 5)"
    )
    training.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DEFAULTS.dtype,
        help="of the products in passes that train; bf16 is faster where the processor multiplies it (default fp32)",
    )
    training.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    training.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (default auto)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with curves (HTML)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Distill, and print what was reached."""
    if not arguments.data:
        raise MisuseError("Give --data FILE, or --data builtin: the text to train on.")
    options = _options(arguments)
    progress = Progress(quiet=arguments.quiet)
    reads = [Path(arguments.teacher), *(Path(item) for item in arguments.data if item != BUILTIN)]
    check_output_files({"--report": arguments.report}, [*reads, arguments.student, arguments.start])
    if arguments.dry_run:
        _check_dry_run(arguments)
        if not options.prune.is_structured:
            raise MisuseError("--dry-run ranks what --prune layers=N, ffn=N or heads=N would remove; give one of them.")
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
            ranking = rank_only(arguments.teacher, arguments.data, options, arguments.seed, Path(scratch), progress)
        _print_ranking(ranking, options.prune, as_json=arguments.json)
        return 0
    if arguments.output is None:
        raise MisuseError("Give -o DIR: the checkpoint to write.")
    training = TrainingOptions(
        steps=arguments.steps,
        minutes=arguments.minutes,
        rows=arguments.rows,
        layerwise=arguments.layerwise,
        learning_rate=arguments.lr,
        scale_rate=arguments.scale_lr,
        temperature=arguments.temperature,
        hidden=arguments.hidden,
        seed=arguments.seed,
        save_every=arguments.save_every,
        dtype=arguments.dtype,
    )
    remark = (lambda _: None) if arguments.quiet else note
    with contextlib.redirect_stdout(sys.stderr):  # what a checkpoint's own code prints
        result = distill(
            arguments.teacher,
            arguments.output,
            arguments.data,
            options,
            training,
            resume=arguments.resume,
            progress=progress,
            remark=remark,
        )
    try:
        if arguments.report is not None:
            write_output(arguments.report, page_of(result))
    finally:
        if arguments.json:
            print_json({"output": str(arguments.output), **result.to_json()})
        else:
            _print(arguments.output, result, has_recipe=options.scheme != "fp")
    return 0


def _check_dry_run(arguments: argparse.Namespace) -> None:
    """Refuse what is about the training and its result: a ranking has neither."""
    given = {
        "-o": arguments.output is not None,
        "--report": arguments.report is not None,
        "--steps": arguments.steps is not None,
        "--minutes": arguments.minutes is not None,
        "--resume": arguments.resume,
    }
    if names := [name for name, is_given in given.items() if is_given]:
        raise MisuseError(f"--dry-run prints the ranking and trains nothing; leave {names[0]} out.")


def _options(arguments: argparse.Namespace) -> DistillOptions:
    is_w4 = arguments.scheme == "w4" and arguments.start is None
    if not 0 <= arguments.cache_gb < 1e6:  # noqa: PLR2004
        raise MisuseError(f"--cache-gb {arguments.cache_gb} must be 0 or more.")
    return DistillOptions(
        prune=Goal.parse(arguments.prune),
        config=arguments.student,
        scheme=arguments.scheme,
        block=arguments.block if arguments.block is not None else (W4_BLOCK if is_w4 else 0),
        start=arguments.start,
        seq_len=arguments.seq_len,
        cache_bytes=int(arguments.cache_gb * 1e9),
        device=arguments.device,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
    )


def _print(output: Path, result: Distilled, *, has_recipe: bool) -> None:
    last, before, after = result.ends[1], *(moment.held_out for moment in result.ends)
    teacher, student = result.parameters
    print_text(
        f"{output}: {result.architecture}, {student / 1e6:,.1f} M parameters ({teacher / 1e6:,.1f} M of the teacher)"
    )
    print_text(
        f"  trained: {last.step:,} steps in {last.seconds / 60:,.1f} minutes, {result.epochs:.2f} epochs of "
        f"{result.num_train_rows:,} rows"
    )
    print_text(
        f"  held out: KL {before.kl:.4f} -> {after.kl:.4f} nats, perplexity {before.student_ppl:.2f} -> "
        f"{after.student_ppl:.2f} (teacher {after.teacher_ppl:.2f}), top-1 {after.top1:.1%}"
    )
    for remark in result.notes:
        print_text(f"  note: {remark}")
    print_text(f"  next: piston export {output} -o MODEL" + (" --dtype fp32" if has_recipe else ""))
    if has_recipe:
        print_text(f"        piston calibrate MODEL -o QUANTIZED --recipe {output / RECIPE}")


def _print_ranking(ranking: Ranking, goal: Goal, *, as_json: bool) -> None:
    count = max((len(values) for values in (ranking.layers, ranking.channels, ranking.kv_heads)), default=0)
    kept = ranking.kept(goal, count)
    if as_json:
        left = {"layers": list(kept.layers), "ffn": dict(kept.channels), "heads": dict(kept.kv_heads)}
        print_json({"ranking": ranking.to_json(), "kept": left})
        return
    if ranking.layers:
        print_text("layer  KL without it, nats")
        for layer, value in sorted(ranking.layers.items(), key=lambda item: item[1]):
            print_text(f"{layer:>5}  {value:.4f}  {'kept' if layer in kept.layers else 'removed'}")
    for name, values, chosen in (
        ("channels", ranking.channels, kept.channels),
        ("heads", ranking.kv_heads, kept.kv_heads),
    ):
        if values:
            print_text(f"layer  {name} removed, share of what all add to the residual stream")
        for layer, places in chosen.items():
            removed = 1 - float(np.sum(values[layer][list(places)]) / max(float(np.sum(values[layer])), 1e-30))
            print_text(f"{layer:>5}  {len(values[layer]) - len(places)} of {len(values[layer])}, {removed:.2%}")
