"""Service-level objectives: what one request must meet, such as `ttft<500ms,itl.p95<50ms`, in the grammar of gates."""

import functools

import numpy as np

from piston.bench.load.run import Sent
from piston.core.errors import MisuseError
from piston.core.gates import Gate, Metric, parse_gate
from piston.core.statistics import PERCENTS

_OF_REQUEST = {"ttft": "time to first token", "tpot": "time per output token", "e2el": "end-to-end latency"}
_FIGURES = {name: Metric(name=name, described=text, unit="s") for name, text in _OF_REQUEST.items()} | {
    name: Metric(name=f"itl.p{percent}", described=f"inter-token latency, p{percent}", unit="s")
    for percent in PERCENTS
    for name in ((f"itl.p{percent}", "itl") if percent == PERCENTS[0] else (f"itl.p{percent}",))
}


@functools.cache
def parse_slo(text: str) -> tuple[Gate[Metric], ...]:
    """The conditions of an objective, separated by commas; raises MisuseError where one cannot be read."""
    parts = [part for part in text.split(",") if part.strip()]
    if text and not parts:
        raise MisuseError(f"Cannot read --slo {text!r}: write conditions such as 'ttft<500ms,itl.p95<50ms'.")
    return tuple(parse_gate(part, _FIGURES, "--slo") for part in parts)


def meets(sent: Sent, slo: str) -> bool:
    """Whether a request was answered within the objective; without one, whether it was answered."""
    if not sent.times:
        return False
    values = {"ttft": sent.times[0], "tpot": tpot_of(sent), "e2el": sent.times[-1]}
    gaps = np.diff(sent.times)
    if len(gaps):
        found = np.percentile(gaps, PERCENTS)
        values |= {f"itl.p{percent}": float(value) for percent, value in zip(PERCENTS, found, strict=True)}
    judged = {name: value for name, value in values.items() if value is not None}
    return all(gate.metric.name not in judged or gate.judge(judged).is_met for gate in parse_slo(slo))


def tpot_of(sent: Sent) -> float | None:
    """Seconds for each token after the first, by the server's count; None for an answer of one token."""
    return None if sent.num_tokens == 1 else (sent.times[-1] - sent.times[0]) / (sent.num_tokens - 1)
