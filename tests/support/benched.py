"""Systems under test that never run: their times come from a seeded generator, and a clock that only we move."""

import itertools
import zlib

import numpy as np

from piston.bench.child import Contender, Ran
from piston.bench.metrics import of_run
from piston.bench.report import Measured, Options, Run, System
from piston.bench.workload import Setting
from piston.core.statistics import ConfidenceInterval

OPTIONS = Options(repeats=10, warmup=1, starts=0, threads=2)


class FakeChild:
    """Speaks as Child does. `speeds[name]` is seconds for each token; the first takes ten times as long."""

    def __init__(self, contender, limits, speeds, noise=0.02, log=None):
        self.contender, self.limits, self.import_s, self.load_s = contender, limits, 0.1, 0.2
        self.versions = {"python": "3", contender.kind: "1"}
        self._speed, self._noise, self._log = speeds[contender.name], noise, log
        self._rng = np.random.default_rng(zlib.crc32(contender.name.encode()))

    def run(self, prompts, gen_len, num_beams=1):
        if self._log is not None:
            self._log.append((self.contender.name, [tuple(prompt) for prompt in prompts], gen_len))
        drift = np.exp(self._rng.normal(0, self._noise))  # of the whole run, as a machine's is
        steps = self._speed * drift * np.exp(self._rng.normal(0, self._noise, gen_len))
        steps[0] *= 10
        rows = tuple(tuple(range(gen_len)) for _ in prompts)
        parts = {"sample": 1e-4 * gen_len, "tokenize": 1e-3}
        return Ran(times=tuple(np.cumsum(steps).tolist()), token_ids=rows, parts=parts, peak_bytes=300_000_000)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def opener(speeds, **options):
    """What `measure` opens systems with."""
    return lambda contender, limits: FakeChild(contender, limits, speeds, **options)


def ticking(step=0.5):
    """A clock that moves on by `step` at each look."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def contender(name, kind="piston", **changes):
    return Contender(**({"name": name, "kind": kind, "path": name, "python": "python"} | changes))


def noisy_runs(rng, count, seconds=0.01, *, noise=0.02, gen_len=16, prompt_len=8):
    """Runs of a system that takes `seconds` for a token, scattering from run to run and from token to token."""
    drift = np.exp(rng.normal(0, noise, (count, 1)))
    steps = seconds * drift * np.exp(rng.normal(0, noise, (count, gen_len)))
    times = np.cumsum(steps, axis=1)
    return tuple(Run(prompt_len=prompt_len, times=tuple(row.tolist()), parts={}) for row in times)


def system_of(runs, name="own", gen_len=16, prompt_len=8):
    """A system with runs at one setting and their medians, without intervals and starts."""
    setting = Setting(1, prompt_len, gen_len)
    samples = [of_run(run, setting) for run in runs]
    medians = {
        metric: ConfidenceInterval(float(np.median([sample[metric] for sample in samples]))) for metric in samples[0]
    }
    metrics = {metric: {"p50": value} for metric, value in medians.items()}
    measured = Measured(setting=setting, runs=tuple(runs), metrics=metrics)
    return System(
        name=name, kind="piston", path=name, digest=None, versions={}, starts=(), metrics={}, settings=(measured,)
    )
