"""The figures of a run, by name: what each is, in which unit, and which way is better."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from piston.bench.load.run import LoadRun
from piston.bench.load.setting import LoadSetting
from piston.bench.load.slo import meets, tpot_of
from piston.bench.report import Measured, MeasuredLoad, Run, StageRun, Start
from piston.bench.workload import Setting
from piston.core.bundle.manifest import TEXT_GENERATION
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
    "encode": Metric("encoder", "s"),
    "rtf": Metric("real-time factor", ""),
    "first_segment": Metric("time to first segment", "s"),
    "decode": Metric("decode", "tokens/s", is_better_high=True),
    "tokenize": Metric("tokenizing the prompts", "s"),
    "sample": Metric("sampling, per token", "s"),
    "first_token": Metric("new process to first token", "s", is_of_start=True),
    "imports": Metric("importing the library", "s", is_of_start=True),
    "load": Metric("loading the model", "s", is_of_start=True),
    "peak": Metric("peak memory", "bytes", is_of_start=True),
}
LOAD_METRICS = {
    "ttft": METRICS["ttft"],
    "itl": METRICS["itl"],
    "tpot": METRICS["tpot"],
    "e2el": Metric("end-to-end latency", "s"),
    "throughput": Metric("generated", "tokens/s", is_better_high=True),
    "requests": Metric("answered", "requests/s", is_better_high=True),
    "goodput": Metric("answered within the objective", "requests/s", is_better_high=True),
    "attainment": Metric("share within the objective", "share", is_better_high=True),
    "stall": Metric("p99 of the inter-token latency over its median", ""),
    "efficiency": Metric("share of the engine's own throughput", "share", is_better_high=True),
}
STAGE_METRICS = {
    "seconds": Metric("time", "s"),
    "cpu": Metric("time of all cores", "s"),
    "peak": Metric("peak memory", "bytes"),
    "written": Metric("written", "bytes"),
}


def names_of(setting: Setting | LoadSetting) -> set[str]:
    """The metrics that runs of a setting have, unless nothing was said or no request was answered."""
    if isinstance(setting, LoadSetting):
        return LOAD_METRICS.keys() - (set() if setting.gen_len[1] > 1 else {"tpot", "itl", "stall"})
    if setting.audio:
        return {"rtf", "first_segment", "total", "encode", "decode"}
    found = {"ttft", "total", "tokenize", "prefill" if setting.task == TEXT_GENERATION else "encode"}
    found |= {"sample"} if setting.num_beams == 1 else set()
    return found | ({"tpot", "itl", "decode"} if setting.gen_len > 1 else set())


def of_run(run: Run, setting: Setting) -> dict[str, Array]:
    """Every metric of one run; one value, except `itl`, which has one for each token after the first.

    TPOT is the time after the first token over the tokens after the first. Prefill and decode count the tokens of all
    rows, of a search those of its answer; prefill ends when every row has its first token. One token gives no decode
    figures. An encoder-decoder has the time of its encoder's runs instead of a prefill. Of speech decode counts the
    tokens over all the time but the encoder's.
    """
    times = np.asarray(run.times, np.float64)
    if setting.audio:
        return _of_audio(run)
    elapsed, num_steps = float(times[-1] - times[0]), len(times) - 1
    values = {"ttft": times[0], "total": times[-1]}
    if setting.task == TEXT_GENERATION:
        values["prefill"] = setting.batch * run.prompt_len / times[0]
    else:
        values["encode"] = run.parts["encode"]
    if num_steps:
        values |= {"tpot": elapsed / num_steps, "decode": setting.batch * num_steps / elapsed}
    if "tokenize" in run.parts:
        values["tokenize"] = run.parts["tokenize"]
    if "sample" in run.parts:
        values["sample"] = run.parts["sample"] / (setting.batch * len(times))
    found = {name: np.asarray([value], np.float64) for name, value in values.items()}
    return found | {"itl": np.diff(times)} if num_steps else found


def _of_audio(run: Run) -> dict[str, Array]:
    """See of_run; an audio in which nothing was said has no segment and no tokens."""
    total, encode, num_tokens = run.times[-1], run.parts["encode"], run.parts["tokens"]
    values = {"rtf": total / run.parts["audio"], "total": total, "encode": encode}
    if num_tokens:
        values |= {"first_segment": run.times[0], "decode": num_tokens / (total - encode)}
    return {name: np.asarray([value], np.float64) for name, value in values.items()}


def of_load(run: LoadRun, setting: LoadSetting) -> dict[str, Array]:
    """Every metric of one run under load, with vLLM's names: TTFT, TPOT and E2EL have a value for each answer.

    `itl` has one for each gap between two pieces of text. The long prompt of a setting counts as generated, but is none
    of the requests whose latency is measured. `requests` are those answered, `goodput` those within the objective.
    """
    answered = [item for item in run.sent if item.times and not item.is_long]
    num_tokens = sum(item.num_tokens for item in run.sent)
    num_good, num_asked = sum(meets(item, setting.slo) for item in answered), sum(not item.is_long for item in run.sent)
    rates = {"throughput": num_tokens, "requests": len(answered), "goodput": num_good}
    values: dict[str, float | list[float]] = {
        "ttft": [item.times[0] for item in answered],
        "e2el": [item.times[-1] for item in answered],
        "tpot": [seconds for item in answered if (seconds := tpot_of(item)) is not None],
        **{name: count / run.seconds if run.seconds else 0.0 for name, count in rates.items()},
        "attainment": num_good / num_asked,
    }
    gaps = np.concatenate([np.diff(item.times) for item in answered] or [np.zeros(0)])
    values["itl"] = gaps.tolist()
    if len(gaps) and (median := float(np.median(gaps))) > 0:
        values["stall"] = float(np.percentile(gaps, 99)) / median
    if run.engine_seconds is not None:
        values["efficiency"] = run.engine_seconds / run.seconds
    return {name: found for name, value in values.items() if len(found := np.atleast_1d(np.asarray(value, np.float64)))}


def samples_of(measured: Measured | MeasuredLoad) -> list[dict[str, Array]]:
    """Every metric of each run."""
    if isinstance(measured, MeasuredLoad):
        return [of_load(run, measured.setting) for run in measured.runs]
    return [of_run(run, measured.setting) for run in measured.runs]


def metric_of(name: str) -> Metric:
    """The metric of a bundle or of a server under load."""
    return METRICS[name] if name in METRICS else LOAD_METRICS[name]


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
    """Quantiles of each metric over runs, starts or runs of a stage; of those that every sample has."""
    if not samples:
        return {}
    names = [name for name in METRICS | LOAD_METRICS | STAGE_METRICS if all(name in sample for sample in samples)]
    rng = np.random.default_rng(seed)
    return {name: estimates([sample[name] for sample in samples], rng) for name in names}
