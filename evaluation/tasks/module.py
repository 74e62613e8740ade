"""Modules of one's own: how far the outputs move, and in which direction."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle import GRAPH
from piston.core.bundle.examples import same_infinities
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.errors import EngineError
from piston.core.gates import Metric
from piston.evaluation.tasks import Comparison
from piston.runtime.backends.session import OrtOptions, OrtSession

ERROR = Metric(
    name="error",
    described="the distance of an output from the float model's, over its length, of the worst output",
    unit="share",
)
COSINE = Metric(
    name="cosine",
    described="the cosine of an output and the float model's, of the worst output",
    is_better_high=True,
)
AGREEMENT = Metric(
    name="agreement",
    described="the share of equal numbers of outputs that are integers, of the worst output",
    unit="share",
    is_better_high=True,
)
METRICS = {metric.name: metric for metric in (ERROR, COSINE, AGREEMENT)}
DEFAULTS = {"fp": "error<=0.1%", "w8": "error<=2%", "w8a8": "error<=10%", "w4": "error<=25%"}
Array = NDArray[Any]
Samples = Sequence[Mapping[str, Array]]


def compare(candidate: Path, reference: Path, rows: Samples, progress: Progress) -> Comparison:
    """The outputs of two model directories for the same inputs, all of them taken together.

    Infinities, such as those of a mask, must be the float model's; they, and its NaN, are left out of the figures.

    Raises:
        EngineError: the candidate gives NaN, or other infinities.
    """
    found, wanted = (_outputs(path, rows, progress) for path in (candidate, reference))
    values: dict[str, float] = {}
    for name, exact in wanted.items():
        if exact.dtype.kind != "f":
            share = float(np.mean(found[name] == exact))
            values[AGREEMENT.name] = min(share, values.get(AGREEMENT.name, 1.0))
            continue
        is_number = ~np.isnan(exact)
        if not same_infinities(found[name][is_number], exact[is_number]):
            raise EngineError(
                f"The output {name!r} of {candidate} has NaN, or other infinities than that of {reference}; use "
                "another scheme."
            )
        left, right = (array[np.isfinite(exact)].astype(np.float64) for array in (found[name], exact))
        length = max(float(np.linalg.norm(right)), 1e-30)
        error = float(np.linalg.norm(left - right)) / length
        cosine = float(left @ right) / max(length * float(np.linalg.norm(left)), 1e-30)
        values[ERROR.name] = max(error, values.get(ERROR.name, 0.0))
        values[COSINE.name] = min(cosine, values.get(COSINE.name, 1.0))
    return Comparison(values=values, summary=_described(values, sum(len(_first(sample)) for sample in rows)))


def _outputs(path: Path, rows: Samples, progress: Progress) -> dict[str, Array]:
    """Each output over all samples, flat."""
    found: dict[str, list[Array]] = {}
    interface = Manifest.read(path).graphs[MODULE]
    with closing(OrtSession.open(path / GRAPH, interface, OrtOptions(optimize=True))) as session:
        for done, sample in enumerate(rows):
            progress.step("comparing", done, len(rows))
            for name, array in session.run(sample).items():
                found.setdefault(name, []).append(array.reshape(-1))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def _first(sample: Mapping[str, Array]) -> Array:
    return np.atleast_1d(next(iter(sample.values())))


def _described(values: Mapping[str, float], num_rows: int) -> str:
    parts = []
    if ERROR.name in values:
        parts.append(f"outputs moved by {values[ERROR.name]:.2%} of their length, cosine {values[COSINE.name]:.5f}")
    if AGREEMENT.name in values:
        parts.append(f"{values[AGREEMENT.name]:.2%} of the integers agree")
    return f"{', '.join(parts)}, on {num_rows} rows"
