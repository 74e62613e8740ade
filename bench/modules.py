"""`piston bench` on a module of one's own: the time of one run, runs a second, load time and peak memory.

The inputs are the example that the module was exported with, or those of an .npz file (`--prompts`). Everything is
measured in this process, which holds one model.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from piston.bench.encoders import LOAD_AND_PEAK
from piston.core.arrays import read_arrays
from piston.core.console import Progress
from piston.core.gates import Metric
from piston.runtime.tasks.module import Module

METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="latency", described="the median time of one run", unit="s"),
        Metric(name="latency_p90", described="the 90th percentile of the time of one run", unit="s"),
        Metric(name="runs_per_second", described="the runs a second", is_better_high=True),
        *LOAD_AND_PEAK,
    )
}
RUNS = 10  # of a round


def measure_runs(
    model: Module, path: Path | None, repeats: int, warmup: int, progress: Progress
) -> tuple[dict[str, float], dict[str, Any], str]:
    """See piston.bench.encoders.Bench: `repeats` rounds of RUNS after `warmup` rounds."""
    feeds = model.checked(model.examples[0].inputs if path is None else read_arrays(path))
    seconds: list[float] = []
    name = "running"
    with progress.phase(name):
        for done in range(warmup + repeats):
            progress.step(name, done, warmup + repeats)
            for _ in range(RUNS):
                began = time.perf_counter()
                model.run(feeds)
                if done >= warmup:
                    seconds.append(time.perf_counter() - began)
    values = {
        "latency": float(np.median(seconds)),
        "latency_p90": float(np.percentile(seconds, 90)),
        "runs_per_second": len(seconds) / sum(seconds),
    }
    shapes = {feed: list(array.shape) for feed, array in feeds.items()}
    described = ", ".join(f"{feed} {shape}" for feed, shape in shapes.items())
    return values, {"shapes": shapes}, described
