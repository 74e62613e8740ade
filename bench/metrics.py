"""The figures of a run, by name: what each is, in which unit, and which way is better."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from piston.bench.report import Run, StageRun, Start
from piston.bench.workload import Setting
from piston.core.statistics import Array, ConfidenceInterval, estimates
from piston.core.units import Unit


class Metric(NamedTuple):
    """A figure of every run, or of every start."""

    described: str
    unit: Unit
    is_better_high: bool = False
    is_of_start: bool = False


METRICS = {
    "ttft": Metric("time to first token", "s"),
    "tpot": Metric("time per output token", "s"),
    "itl": Metric("inter-token latency", "s"),
    "total": Metric("whole answer", "s"),
    "prefill": Metric("prefill", "tokens/s", is_better_high=True),
    "decode": Metric("decode", "tokens/s", is_better_high=True),
    "tokenize": Metric("tokenizing the prompts", "s"),
    "sample": Metric("sampling, per token", "s"),
    "first_token": Metric("new process to first token", "s", is_of_start=True),
    "imports": Metric("importing the library", "s", is_of_start=True),
    "load": Metric("loading the model", "s", is_of_start=True),
    "peak": Metric("peak memory", "bytes", is_of_start=True),
}
STAGE_METRICS = {
    "seconds": Metric("time", "s"),
    "cpu": Metric("time of all cores", "s"),
    "peak": Metric("peak memory", "bytes"),
    "written": Metric("written", "bytes"),
}


def of_run(run: Run, setting: Setting) -> dict[str, Array]:
    """Every metric of one run; one value, except `itl`, which has one for each token after the first.

    TPOT is the time after the first token over the tokens after the first. Prefill and decode count the tokens of all
    rows; prefill ends when every row has its first token. One token gives no decode figures.
    """
    times = np.asarray(run.times, np.float64)
    elapsed, num_steps = float(times[-1] - times[0]), len(times) - 1
    values = {"ttft": times[0], "total": times[-1], "prefill": setting.batch * run.prompt_len / times[0]}
    if num_steps:
        values |= {"tpot": elapsed / num_steps, "decode": setting.batch * num_steps / elapsed}
    if "tokenize" in run.parts:
        values["tokenize"] = run.parts["tokenize"]
    if "sample" in run.parts:
        values["sample"] = run.parts["sample"] / (setting.batch * len(times))
    found = {name: np.asarray([value], np.float64) for name, value in values.items()}
    return found | {"itl": np.diff(times)} if num_steps else found


def of_start(start: Start) -> dict[str, Array]:
    """Every metric of one start."""
    values = {
        "first_token": start.first_token,
        "imports": start.imports,
        "load": start.load,
        "peak": float(start.peak_bytes),
    }
    return {name: np.asarray([value], np.float64) for name, value in values.items()}


def of_stage(run: StageRun) -> dict[str, Array]:
    """Every metric of one run of a stage."""
    values = {
        "seconds": run.seconds,
        "cpu": run.cpu_seconds,
        "peak": float(run.peak_bytes),
        "written": float(run.written_bytes),
    }
    return {name: np.asarray([value], np.float64) for name, value in values.items()}


def summary(samples: Sequence[dict[str, Array]], seed: int) -> dict[str, dict[str, ConfidenceInterval]]:
    """Quantiles of each metric over runs, starts or runs of a stage."""
    if not samples:
        return {}
    names = [name for name in METRICS | STAGE_METRICS if name in samples[0]]
    rng = np.random.default_rng(seed)
    return {name: estimates([sample[name] for sample in samples], rng) for name in names}
