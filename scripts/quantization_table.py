"""Every scheme on one model: calibrated, built and evaluated on held-out texts, as a table in Markdown.

    python scripts/quantization_table.py MODEL_DIR

What was made with the same words of the same model is taken from the work directory, so an interrupted run goes on. A
row's perplexity is that of its bundle, compared with the float bundle on the same tokens; intervals are of 95 %
(bootstrap over windows). An INT8 cache is compared with the same scheme without one, within the calibration length and
at four times that.

--quick tries every kind of row on few and short rows, in a work directory of its own: its figures say nothing but that
the commands run.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heldout_texts import SOURCES, UnavailableError, heldout_text

NEAR, FAR = 512, 2048
ANYTHING = ("--require", "ppl<=10000%")  # rows that are there for contrast
BUILTIN = ("--data", "builtin")


@dataclass(frozen=True)
class Row:
    """A name and the words of `piston calibrate` that make it; none for the float model."""

    name: str
    words: tuple[str, ...] = ()
    on_top_of: str = ""  # of an INT8 cache: the row without it
    is_optional: bool = False  # made only where --only names it

    @property
    def place(self) -> str:
        """A name for files."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


W8A8 = ("--scheme", "w8a8", *BUILTIN)
W8 = ("--scheme", "w8")
W8_GPTQ = (*W8, "--block", "32", *BUILTIN, "--rounding", "gptq", "--samples", "16")
W4 = ("--scheme", "w4", "--block", "128", *BUILTIN)
KV8 = ("--kv", "int8")
HALF = ("--samples", "32")  # rows, where weights do not depend on them
ROWS = (
    Row("float32"),
    Row("w8a8, naive min-max", (*W8A8, "--no-smooth", "--no-remainder", *ANYTHING)),
    Row("w8a8", W8A8),
    Row("w8a8, no remainder, six kept", (*W8A8, "--no-remainder", "--keep-worst", "6"), is_optional=True),
    Row("w8a8, --budget 'kl<=0.01'", (*W8A8, "--budget", "kl<=0.01")),
    Row("w8", W8),
    Row("w8 GPTQ, block 32", W8_GPTQ),
    Row("w4 nearest, block 128", (*W4[:4], "--rounding", "nearest", "--int8", "none", *ANYTHING)),
    Row("w4, block 128", W4),
    Row("w4 AWQ, block 128", (*W4, "--rounding", "awq"), is_optional=True),
    Row("kv8", ("--scheme", "fp", *BUILTIN, *HALF, *KV8), "float32"),
    Row("w8a8+kv8", (*W8A8, *KV8), "w8a8"),
    Row("w8+kv8", (*W8, *BUILTIN, *HALF, *KV8), "w8"),
    Row("w8 GPTQ+kv8", (*W8_GPTQ, *KV8), "w8 GPTQ, block 32"),
    Row("w4+kv8", (*W4, *KV8), "w4, block 128"),
)
QUICK = ("--samples", "8", "--seq-len", "64", *ANYTHING)


@dataclass(frozen=True)
class Extent:
    """How much is read: tokens of each text, windows within the calibration length and beyond it, further words."""

    max_tokens: int
    near: int = NEAR
    far: int = FAR
    words: tuple[str, ...] = ()

    def words_of(self, row: Row) -> tuple[str, ...]:
        """Of `piston calibrate`; what comes last holds."""
        if not self.words:
            return row.words
        words = self.words if "--data" in row.words else ANYTHING
        searches = ("--budget", "ppl<=50%", "--budget-time", "60s") if "--budget" in row.words else ()
        return (*row.words, *words, *searches)


def main() -> None:
    """Make what is missing, then print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--work", type=Path, default=Path("models/quantization"), help="directories, bundles, figures")
    parser.add_argument("--max-tokens", type=int, default=8192, metavar="N", help="tokens of each text (default 8192)")
    parser.add_argument("--quick", action="store_true", help="try the commands on little text")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rows to make; repeatable")
    arguments = parser.parse_args()
    arguments.extent = Extent(arguments.max_tokens)
    if arguments.quick:
        arguments.work, arguments.extent = arguments.work / "quick", Extent(256, 64, 256, QUICK)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if unknown := sorted(set(arguments.only) - {row.name for row in ROWS}):
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(row.name for row in ROWS)}")
    wanted = [row for row in ROWS if row.name in arguments.only or not (arguments.only or row.is_optional)]
    arguments.texts = available_texts()
    made = {row.name: make(row, arguments) for row in with_bases(wanted)}
    print(table(made, [row for row in wanted if not row.on_top_of and row.words], arguments))
    if caches := [row for row in wanted if row.on_top_of]:
        print()
        print(cache_table(caches, arguments))


def available_texts() -> dict[str, Path]:
    """The held-out texts that are available here, by name; exits if there is none."""
    found = {}
    for name in SOURCES:
        try:
            found[name] = heldout_text(name)
        except UnavailableError as reason:
            print(f"skipped {name}: {reason}", file=sys.stderr)
    if not found:
        sys.exit("No held-out text is available; see scripts/heldout_texts.py.")
    return found


def with_bases(rows: list[Row]) -> list[Row]:
    """The rows and those they are compared with, in the order of ROWS."""
    names = {"float32", *(row.name for row in rows), *(row.on_top_of for row in rows)}
    return [row for row in ROWS if row.name in names]


def make(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Calibrate and build, or read what an earlier run made; seconds, share in INT8, bytes."""
    place, record = arguments.work / row.place, arguments.work / f"{row.place}.json"
    manifest = (arguments.model_dir / "manifest.json").read_bytes()
    words = arguments.extent.words_of(row) if row.words else ()
    key = hashlib.sha256(json.dumps(words).encode() + manifest).hexdigest()
    if (
        record.is_file()
        and (found := json.loads(record.read_text()))["key"] == key
        and bundle_of(row, arguments).is_dir()
    ):
        return dict(found)
    seconds, source, weights = 0.0, arguments.model_dir, None
    if words:
        start = time.perf_counter()
        piston("calibrate", arguments.model_dir, "-o", place, "--overwrite", *words)
        seconds, source = time.perf_counter() - start, place
        weights = json.loads((place / "manifest.json").read_text())["made_by"]["calibration"]["size"]
    bundle = bundle_of(row, arguments)
    piston("build", source, "-o", bundle, "--target", "ort-cpu", "--overwrite", "--max-length", 2 * FAR)
    got = json.loads((bundle / "manifest.json").read_text())["engines"][0]["actual"]
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    int8 = got["linears"].get("int8", 0.0)
    made = {"key": key, "seconds": seconds, "int8": int8, "bytes": size, "weights": weights}
    record.write_text(json.dumps(made))
    return made


def bundle_of(row: Row, arguments: argparse.Namespace) -> Path:
    """Where its bundle is."""
    return Path(arguments.work) / f"{row.place}.bundle"


def compared(row: Row, base: Row, text: str, window: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """`piston eval` of one bundle against another, cached next to them until one of the two changes."""
    paths = [bundle_of(item, arguments) for item in (row, base)]
    manifests = b"".join((path / "manifest.json").read_bytes() for path in paths)
    # A cache's windows overlap little: half the time, and each is compared with the same tokens without the cache.
    overlap, max_tokens = window // (8 if row.on_top_of else 2), arguments.extent.max_tokens
    stride = window - overlap
    key = hashlib.sha256(manifests + f"{text} {window} {stride} {max_tokens}".encode()).hexdigest()
    record = arguments.work / f"{row.place}-{base.place}-{text}-{window}.json"
    if record.is_file() and (found := json.loads(record.read_text()))["key"] == key:
        return dict(found["report"])
    data = arguments.texts[text]
    sizes = ["--window", window, "--stride", stride, "--max-tokens", max_tokens, "--answer-tokens", 0]
    report = json.loads(piston("eval", paths[0], "--reference", paths[1], "--data", data, "--json", *sizes))
    record.write_text(json.dumps({"key": key, "report": report}))
    return dict(report)


def piston(*words: object) -> str:
    """Run the command of this environment; its progress goes to stderr."""
    command = [str(Path(sys.executable).parent / "piston"), *map(str, words)]
    print(" ".join(command), file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(made: dict[str, dict[str, Any]], rows: list[Row], arguments: argparse.Namespace) -> str:
    """Every scheme against the float bundle."""
    heads = [f"{text}: perplexity | change | top-1" for text in arguments.texts]
    lines = [
        f"| scheme | {' | '.join(heads)} | weights, MB (promised) | bundle, MB | linears in INT8 | calibrated in |",
        f"|{'---|' * (1 + 3 * len(arguments.texts) + 4)}",
    ]
    for row in rows:
        reports = [compared(row, ROWS[0], text, arguments.extent.near, arguments) for text in arguments.texts]
        cells = [f"{report['candidate']['perplexity']['value']:.2f} | {agreement(report)}" for report in reports]
        entry = made[row.name]
        weights = entry["weights"]
        size = f"{weights['actual'] / 1e6:.1f} ({weights['promised'] / 1e6:.1f})"
        lines.append(
            f"| {row.name} | {' | '.join(cells)} | {size} | {entry['bytes'] / 1e6:.0f} | {entry['int8']:.1%} | "
            f"{entry['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def cache_table(rows: list[Row], arguments: argparse.Namespace) -> str:
    """An INT8 cache against the same scheme without one."""
    windows = (arguments.extent.near, arguments.extent.far)
    heads = [f"{text}, windows of {window:,}" for window in windows for text in arguments.texts]
    lines = [f"| INT8 cache on top of | {' | '.join(heads)} |", f"|{'---|' * (1 + len(heads))}"]
    by_name = {row.name: row for row in ROWS}
    for row in rows:
        cells = [
            change(compared(row, by_name[row.on_top_of], text, window, arguments))
            for window in windows
            for text in arguments.texts
        ]
        lines.append(f"| {row.on_top_of} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(report: dict[str, Any]) -> str:
    """Two cells: the change and the share of equal first choices."""
    return f"{change(report)} | {report['agreement']['top1']['value']:.1%}"


def change(report: dict[str, Any]) -> str:
    """A perplexity ratio as what it adds."""
    ratio = report["agreement"]["perplexity_ratio"]
    interval = "" if ratio["low"] is None else f" [{ratio['low'] - 1:+.2%}, {ratio['high'] - 1:+.2%}]"
    return f"{ratio['value'] - 1:+.2%}{interval}"


if __name__ == "__main__":
    main()
