"""Sparsity, pruning and distillation on one model, judged on the held-out texts, as the table of docs/compression.md.

    python scripts/compression_table.py TEACHER [--minutes 60] [--more-data] [--only NAME]

TEACHER is a checkpoint (the demo: `python scripts/demo_checkpoint.py`). What an earlier run made is taken from the work
directory, and a distillation that was stopped goes on. Figures are of bundles for ort-cpu, compared with the whole
float model's on the same tokens; intervals are of 95 %.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantization_table import available_texts, piston
from training_texts import training_text

NEAR = 512  # tokens of a window
BUILTIN = ("--data", "builtin")
ANYTHING = ("--require", "ppl<=100000%")  # rows that are there for contrast
W4 = ("--scheme", "w4", "--block", "128", *BUILTIN)
TRAINING = ("--rows", "8", "--dtype", "bf16", "--save-every", "3")


@dataclass(frozen=True)
class Row:
    """A name, and how it comes about: the words of `piston calibrate`, of `piston distill`, or of both."""

    name: str
    calibrate: tuple[str, ...] = ()
    distill: tuple[str, ...] = ()
    is_trained: bool = True  # or only made, as distill begins
    start: str = ""  # the row that distill begins from: a calibration, or a student

    @property
    def place(self) -> str:
        """A name for files."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


LAYERS = ("--prune", "layers=24", "--lr", "4e-4")
ROWS = (
    Row("w4, GPTQ", W4),
    Row("w4, GPTQ, no split", (*W4, "--split", "0", *ANYTHING)),
    Row("w4, distilled", distill=("--scheme", "w4", "--layerwise"), start="w4, GPTQ, no split"),
    Row("24 of 30 layers", distill=LAYERS, is_trained=False),
    Row("24 of 30 layers, distilled", distill=LAYERS),
    Row("2:4, magnitude", ("--scheme", "fp", "--sparsity", "2:4", "--pruning", "magnitude", *ANYTHING)),
    Row("2:4, SparseGPT", ("--scheme", "fp", "--sparsity", "2:4", *BUILTIN, *ANYTHING)),
    Row("2:4, SparseGPT, w8a8", ("--scheme", "w8a8", "--sparsity", "2:4", *BUILTIN, *ANYTHING)),
    Row("2:4, distilled layer by layer", distill=("--layerwise",), start="2:4, SparseGPT"),
    Row("2:4, distilled", distill=("--lr", "1e-4"), start="2:4, distilled layer by layer"),
)


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--work", type=Path, default=Path("models/compression"), help="directories, bundles, figures")
    parser.add_argument("--minutes", type=float, default=60, help="of each distillation (default 60)")
    parser.add_argument("--steps", type=int, help="of each distillation, instead of minutes")
    parser.add_argument(
        "--more-data", action="store_true", help="train on the texts of scripts/training_texts.py as well"
    )
    parser.add_argument("--max-tokens", type=int, default=8192, metavar="N", help="tokens of each text (default 8192)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rows to make; repeatable")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if unknown := sorted(set(arguments.only) - {row.name for row in ROWS}):
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(row.name for row in ROWS)}")
    arguments.texts = available_texts()
    arguments.more = ("--data", training_text()) if arguments.more_data else ()
    model = arguments.work / "model"
    made(model, "export", arguments.teacher, "-o", model, "--dtype", "fp32")
    made(bundle_of("model", arguments), "build", model, "-o", bundle_of("model", arguments), "--max-length", 2 * NEAR)
    wanted = [row for row in ROWS if not arguments.only or row.name in arguments.only]
    lines = [line_of(row, arguments) for row in wanted]
    heads = [f"{text}: perplexity | change | KL, nats | top-1" for text in arguments.texts]
    print(f"| | {' | '.join(heads)} | bundle, MB | trained |")
    print(f"|{'---|' * (1 + 4 * len(arguments.texts) + 2)}")
    print("\n".join(lines))


def made(goal: Path, *words: object) -> None:
    """Run a command of Piston unless its output is there."""
    if not goal.exists():
        piston(*words)


def make(row: Row, arguments: argparse.Namespace) -> Path:
    """The bundle of a row."""
    work, bundle = arguments.work, bundle_of(row.place, arguments)
    source = work / "model"
    if row.distill:
        source = student_of(row, arguments)
    if row.calibrate:
        made(work / row.place, "calibrate", source, "-o", work / row.place, *row.calibrate)
        source = work / row.place
    made(bundle, "build", source, "-o", bundle, "--max-length", 2 * NEAR)
    return bundle


def student_of(row: Row, arguments: argparse.Namespace) -> Path:
    """The model directory of a student: distilled, exported, and calibrated by its recipe where it has one."""
    work = arguments.work
    student, model, quantized = (work / f"{row.place}.{kind}" for kind in ("student", "model", "quantized"))
    length = ["--minutes", arguments.minutes] if arguments.steps is None else ["--steps", arguments.steps]
    words = [*TRAINING, *(length if row.is_trained else ["--steps", "0"]), *row.distill]
    if row.start:
        start = next(other for other in ROWS if other.name == row.start)
        make(start, arguments)
        words += ["--start", work / (f"{start.place}.model" if start.distill else start.place)]
    words += ["--report", work / f"{row.place}.html", "--resume"]
    made(student, "distill", arguments.teacher, "-o", student, *BUILTIN, *arguments.more, *words)
    made(model, "export", student, "-o", model, "--dtype", "fp32")
    if not (student / "recipe.json").is_file():
        return Path(model)
    made(quantized, "calibrate", model, "-o", quantized, "--recipe", student / "recipe.json", *ANYTHING)
    return Path(quantized)


def line_of(row: Row, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    bundle = make(row, arguments)
    cells = []
    for text, data in arguments.texts.items():
        report = compared(row, bundle, text, data, arguments)
        found, ratio = report["agreement"], report["agreement"]["perplexity_ratio"]
        interval = "" if ratio["low"] is None else f" [{ratio['low'] - 1:+.1%}, {ratio['high'] - 1:+.1%}]"
        cells.append(
            f"{report['candidate']['perplexity']['value']:.2f} | {ratio['value'] - 1:+.1%}{interval} | "
            f"{found['kl']['mean']['value']:.4f} | {found['top1']['value']:.1%}"
        )
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    return f"| {row.name} | {' | '.join(cells)} | {size / 1e6:.0f} | {trained(row, arguments)} |"


def trained(row: Row, arguments: argparse.Namespace) -> str:
    """How long, where it was."""
    record = arguments.work / f"{row.place}.student/distillation.json"
    if not row.is_trained or not record.is_file():
        return ""
    found = json.loads(record.read_text())
    return f"{found['steps']:,} steps, {found['seconds'] / 60:.0f} min, {found['epochs']:.2f} epochs"


def compared(row: Row, bundle: Path, text: str, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`piston eval` against the whole model, kept next to the bundle."""
    record = arguments.work / f"{row.place}-{text}-{arguments.max_tokens}.json"
    if not record.is_file():
        sizes = ["--window", NEAR, "--stride", NEAR // 2, "--max-tokens", arguments.max_tokens, "--answer-tokens", 0]
        words = ["eval", bundle, "--reference", bundle_of("model", arguments), "--data", data, "--json", *sizes]
        record.write_text(piston(*words))
    return dict(json.loads(record.read_text()))


def bundle_of(place: str, arguments: argparse.Namespace) -> Path:
    """Where a bundle is."""
    return Path(arguments.work) / f"{place}.bundle"


if __name__ == "__main__":
    sys.exit(main())
