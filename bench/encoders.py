"""`piston bench` on an encoder bundle: the latency of one text, texts a second, load time and peak memory.

Texts are encoded and run as the task's own calls do it, but for what is made of the outputs. Everything is measured in
this process, which holds one model.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from piston.bench.fingerprint import take_fingerprint
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress, print_json, print_text
from piston.core.data_files import texts_of
from piston.core.gates import Metric, gates_of, tell_gates
from piston.core.machine import num_cores
from piston.core.schema import to_plain
from piston.core.tasks import task_module
from piston.core.units import shown
from piston.runtime import tasks
from piston.runtime.bundle import Bundle
from piston.runtime.encoder import EncoderModel
from piston.runtime.process_memory import peak_memory
from piston.runtime.verify_outputs import TEXTS

LOAD_AND_PEAK = (
    Metric(name="load", described="the time to load", unit="s"),
    Metric(name="peak", described="the peak memory", unit="bytes"),
)
METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="latency", described="the median time of one text", unit="s"),
        Metric(name="latency_p90", described="the 90th percentile of the time of one text", unit="s"),
        Metric(name="texts_per_second", described="the texts a second", is_better_high=True),
        Metric(name="tokens_per_second", described="the tokens read", unit="tokens/s", is_better_high=True),
        *LOAD_AND_PEAK,
    )
}
NUM_TEXTS, SHORT, LONG = 256, 4, 128  # made texts, and their words: from SHORT to LONG
LATENCY_RUNS = 10  # of one text, for each round


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured of bundles of a kind, and on what.

    Args:
        metrics: by name.
        measure: measures a loaded model, given the file of --prompts, repeats, warm-up and progress: the values, what
            JSON says of the work, and the work in words.
    """

    metrics: Mapping[str, Metric]
    measure: Callable[[Any, Path | None, int, int, Progress], tuple[dict[str, float], dict[str, Any], str]]


def run(arguments: argparse.Namespace, bench: Bench) -> int:
    """Measure in this process, print, judge; the options are checked."""
    (path,) = arguments.bundle
    task = Manifest.read(path).task
    gates = gates_of(arguments, bench.metrics, "--fail-on")
    repeats = 10 if arguments.repeats is None else arguments.repeats
    warmup = 2 if arguments.warmup is None else arguments.warmup
    threads = num_cores() if arguments.threads is None else arguments.threads
    began = time.perf_counter()
    module = task_module(tasks, task)
    with module.open_model(Bundle.open(path, verify=False), target=arguments.target, threads=threads) as model:
        load = time.perf_counter() - began
        progress = Progress(quiet=arguments.quiet)
        values, work, described = bench.measure(model, arguments.prompts, repeats, warmup, progress)
        target = model.target
    values |= {"load": load, "peak": float(peak_memory())}
    results = [gate.judge(values) for gate in gates]
    if arguments.json:
        print_json(
            {
                "schema": 1,
                "piston": version("piston"),
                "bundle": str(path),
                "target": target,
                "task": task,
                "threads": threads,
                **work,
                "repeats": repeats,
                "values": values,
                "gates": to_plain(results),
                "machine": to_plain(take_fingerprint(threads)),
            }
        )
    else:
        print_text(f"{path} on {target}, {threads} threads, {described}:")
        for name, metric in bench.metrics.items():
            print_text(f"  {metric.described.removeprefix('the ')}: {shown(values[name], metric.unit)}")
    return tell_gates(results)


def measure_texts(
    model: EncoderModel, path: Path | None, repeats: int, warmup: int, progress: Progress
) -> tuple[dict[str, float], dict[str, Any], str]:
    """See Bench: on the texts of a file, or on made ones."""
    texts = made_texts() if path is None else texts_of(path)
    values, num_tokens = measured(model, texts, repeats, warmup, progress)
    work = {"num_texts": len(texts), "num_tokens": num_tokens}
    return values, work, f"{len(texts)} texts of {num_tokens:,} tokens"


def measured(
    model: EncoderModel, texts: Sequence[str], repeats: int, warmup: int, progress: Progress
) -> tuple[dict[str, float], int]:
    """Values of the metrics, in seconds and per second, and the tokens of all texts; a median over the rounds."""
    num_tokens = sum(len(row.ids) for row in _rows(model, texts))
    shortest = [min(texts, key=len)]
    alone: list[float] = []
    together: list[float] = []
    name = "running"
    with progress.phase(name):
        for round_index in range(warmup + repeats):
            progress.step(name, round_index, warmup + repeats)
            single = [_seconds(model, shortest) for _ in range(LATENCY_RUNS)]
            whole = _seconds(model, texts)
            if round_index >= warmup:
                alone += single
                together.append(whole)
    seconds = float(np.median(together))
    values = {
        "latency": float(np.median(alone)),
        "latency_p90": float(np.percentile(alone, 90)),
        "texts_per_second": len(texts) / seconds,
        "tokens_per_second": num_tokens / seconds,
    }
    return values, num_tokens


def made_texts() -> list[str]:
    """Texts of mixed lengths, the same on every machine: a few sentences' words over and over."""
    words = " ".join(TEXTS).split()
    sizes = np.random.default_rng(0).integers(SHORT, LONG + 1, NUM_TEXTS).tolist()
    return [" ".join(words[(index + place) % len(words)] for place in range(size)) for index, size in enumerate(sizes)]


def _seconds(model: EncoderModel, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    model.run(_rows(model, texts))
    return time.perf_counter() - began


def _rows(model: EncoderModel, texts: Sequence[str]) -> list[Any]:
    return [model.row(text, what=f"Text {n}", max_tokens=model.max_length) for n, text in enumerate(texts)]
