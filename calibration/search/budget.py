"""--budget: measure what each group of linears costs alone, then keep the cheapest set in float that meets a bound.

Everything is measured on the float model as it was prepared, with Q/DQ switched on and off: a pass costs a few hundred
tokens, and no graph is written for it. What was measured is kept in a file, and an interrupted search goes on from it.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piston.calibration.check import ROW_LEN
from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import Linear, by_input, by_weight
from piston.calibration.observe.checkpoint_file import key_of
from piston.calibration.schemes.kv_cache import Scales
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.meter import AnyMeter, open_meter
from piston.calibration.search.sensitivity import SoloSensitivity, few
from piston.calibration.search.subset_search import Group, Kept, OutOfTimeError, search
from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import sha256_of
from piston.core.console import Progress
from piston.core.errors import ShortfallError
from piston.core.gates import Gate, GateResult, Metric
from piston.core.json_text import json_text
from piston.data.packing import Ids
from piston.data.rows import hash_rows

FLOAT_BYTES = 4
MEASURED = "budget.json"  # the file of what was measured
AIM = 0.9  # of what the bound allows: on SmolLM2-135M a set that the search saw at +2.9 % was +3.2 % as written
SAFETY = 0.97  # of the same, where the search is repeated because the written model missed the bound
SEARCHES = 5  # for a written model that meets the bound, the first one included
RANKING = 0.5  # of the time at most goes into what each group costs alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The bound, the seconds to look for what meets it, and the share of what it allows that the search aims at."""

    bound: Gate[Metric]
    seconds: float = 600.0
    share: float = AIM

    @property
    def aim(self) -> Gate[Metric]:
        """A little inside the bound: the written model multiplies in integers, the search in float."""
        limit = self.bound.bound
        if self.bound.change_of is not None:
            return dataclasses.replace(self.bound, bound=limit * self.share)
        inside = 1 - (1 - limit) * self.share if self.bound.metric.is_better_high else limit * self.share
        return dataclasses.replace(self.bound, bound=inside)

    def after(self, gates: Sequence[GateResult]) -> "Budget | None":
        """The budget of another search, after a model that was written and missed these gates; None if it met this one.

        The search aims lower by the factor by which the written model exceeded the bound.
        """
        missed = next((gate for gate in gates if gate.expression == self.bound.text and not gate.is_met), None)
        if missed is None or missed.value is None:
            return None
        limit, value = self.bound.bound, missed.value
        if self.bound.metric.is_better_high and self.bound.change_of is None:  # of a share what is missing to 1
            limit, value = 1 - limit, 1 - value
        if not limit:  # nothing is further inside
            return None
        used = value / limit
        return dataclasses.replace(self, share=self.share / used * SAFETY) if used > 1 else None


@dataclass(frozen=True, slots=True)
class Point:
    """One measured model: what is in float, the share of the linears' multiply-adds in integers, and what it costs."""

    kept: list[str]
    share: float
    size: int  # bytes of the model directory's weights
    figures: dict[str, float]  # of a language model ppl, ppl_change, kl, top1; of an encoder those of its task


@dataclass(slots=True)
class BudgetResult:
    """What a search measured and found."""

    bound: str
    # Cost of each group of linears alone, without the floor, by their names with commas between; see `cost_of`.
    cost_alone: dict[str, float] = field(default_factory=dict)
    floor: float | None = None  # cost with no linear in integers: of an INT8 cache, and of kept weights in INT8
    points: list[Point] = field(default_factory=list)  # in order of the search
    best: Point | None = None
    is_complete: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For the state file and the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "BudgetResult":
        """Read what was measured; what was found is to be found again."""
        points = [Point(**{**point, "figures": _floats(point["figures"])}) for point in data["points"]]
        floor = None if data["floor"] is None else float(data["floor"])
        return cls(data["bound"], _floats(data["cost_alone"]), floor, points)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchContext:
    """What a search works on: the float model, what its linears would become, and the rows it measures on."""

    graph: ModelGraph
    prepared: Prepared
    kv_scales: Scales
    rows: Ids  # of the calibration: a few of them rank the groups
    held_out: Ids  # the bound is about them
    labelled: Path | None = None  # examples of an encoder's task, which the bound may be about

    @property
    def is_encoder(self) -> bool:
        """Whether it is no language model."""
        return DECODER not in self.graph.manifest.graphs

    @property
    def runs(self) -> dict[str, list[Linear]]:
        """The linears that can be quantized, those of one weight together: what is decided holds for all of them."""
        return by_weight(linear for linear in self.graph.linears if linear.name in self.prepared.weights)

    @property
    def work(self) -> dict[str, int]:
        """Multiply-adds a token of each weight that can be quantized, in all linears that read it."""
        return {name: _size(linears[0]) * len(linears) for name, linears in self.runs.items()}

    def size(self, kept: Kept) -> int:
        """Bytes of all weights with these linears kept and the others in integers."""
        recorded = self.graph.manifest.files.get(GRAPH_DATA) or self.graph.manifest.files[GRAPH]
        saved = 0
        for name, linears in self.runs.items():
            weight = self.prepared.kept.get(name) if name in kept else self.prepared.weights[name]
            if weight is not None:
                values = _size(linears[0])
                saved += FLOAT_BYTES * values - values * weight.grid.bits // 8 - weight.scales.nbytes
        return recorded.size - saved

    @property
    def key(self) -> str:
        """Of everything that shapes what is measured."""
        scales = {name: weight.scales.tobytes().hex()[:64] for name, weight in self.prepared.weights.items()}
        return key_of(
            {
                "model": self.graph.sha256,
                "weights": scales,
                "activations": dict(self.prepared.scales),
                "cache": {name: list(values) for name, values in self.kv_scales.items()},
                "rows": [hash_rows(self.rows), hash_rows(self.held_out)],
                "labelled": None if self.labelled is None else sha256_of(self.labelled),
            }
        )


def spend(ground: SearchContext, budget: Budget, scratch: Path, progress: Progress) -> BudgetResult:
    """Search the linears to keep. `scratch / prepared` holds the prepared float model directory.

    Raises:
        ShortfallError: nothing that was measured meets the bound; the message has the best.
    """
    started = time.monotonic()
    held_out = ground.held_out if ground.is_encoder else ground.held_out[:, :ROW_LEN]
    ground = dataclasses.replace(ground, rows=few(ground.rows, of_encoder=ground.is_encoder), held_out=held_out)
    texts, directory = [ground.rows, held_out], scratch / "prepared"
    meter = open_meter(ground.graph, ground.prepared, ground.kv_scales, directory, texts, ground.labelled)
    try:
        spent = _Search(ground, budget, meter, scratch / MEASURED, progress, started).run()
    finally:
        meter.close()
    if spent.best is None:
        raise ShortfallError(_complaint(spent, budget))
    return spent


class _Search:
    """One search under way."""

    def __init__(
        self, ground: SearchContext, budget: Budget, meter: AnyMeter, path: Path, progress: Progress, started: float
    ) -> None:
        self.ground, self.budget, self.meter, self.path, self.progress = ground, budget, meter, path, progress
        self.deadline = started + budget.seconds
        self.started = started
        self.key = ground.key
        self.spent = self._load()
        self.runs, self.work = ground.runs, ground.work

    def run(self) -> BudgetResult:
        """Rank, search, and say what was found."""
        try:
            groups = self._rank()
        except OutOfTimeError:
            return self._over(None, is_complete=False)
        with self.progress.phase("searching what to keep in float"):
            found = search(groups, self._is_met)
        return self._over(found.kept, is_complete=found.is_complete and len(self.spent.cost_alone) == len(groups))

    def _over(self, kept: Kept | None, *, is_complete: bool) -> BudgetResult:
        self.spent.best = None if kept is None else self._known(kept)
        self.spent.is_complete, self.spent.seconds = is_complete, round(time.monotonic() - self.started, 1)
        return self.spent

    def _rank(self) -> list[Group]:
        """Half the time at most: groups that seem least sensitive come last, and rank last where time is over."""
        first = [linears[0] for linears in self.runs.values()]
        groups = [[linear.name for linear in group] for group in by_input(first).values()]
        errors = self.ground.prepared.errors
        groups.sort(key=lambda group: -max(errors.get(name, 0.0) for name in self._all(group)))
        name, alone = "measuring each group alone", None
        with self.progress.phase(name):
            for done, group in enumerate(groups):
                self.progress.step(name, done, len(groups))
                if ",".join(group) not in self.spent.cost_alone:
                    if time.monotonic() > self.started + RANKING * self.budget.seconds:
                        break
                    alone = alone or SoloSensitivity(self.meter, self.ground.rows, self.spent.floor)
                    self.spent.floor = alone.floor
                    self.spent.cost_alone[",".join(group)] = alone.cost_alone(self._all(group))
                    self._save()
        if not self.spent.cost_alone:
            raise OutOfTimeError
        cost_alone = self.spent.cost_alone
        return [
            Group({name: self.work[name] for name in group}, cost_alone.get(",".join(group), 0.0)) for group in groups
        ]

    def _is_met(self, kept: Kept) -> bool:
        point = self._known(kept)
        if point is None:
            self._check_time()
            quantized = set(self.work) - kept
            share = sum(self.work[name] for name in quantized) / sum(self.work.values())
            figures = self.meter.figures(self._all(quantized), self.ground.held_out) | self.meter.quality()
            point = Point(sorted(self._all(kept)), share, self.ground.size(kept), figures)
            self.spent.points.append(point)
            self._save()
        return self.budget.aim.judge(point.figures).is_met

    def _known(self, kept: Kept) -> Point | None:
        names = set(self._all(kept))
        return next((point for point in self.spent.points if set(point.kept) == names), None)

    def _all(self, names: Iterable[str]) -> list[str]:
        """The linears of the weights that these stand for."""
        return [linear.name for name in names for linear in self.runs[name]]

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTimeError

    def _load(self) -> BudgetResult:
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            spent = BudgetResult.from_json(state["spent"])
        except (OSError, ValueError, KeyError, TypeError):
            return BudgetResult(self.budget.bound.text)
        if state["key"] != self.key:
            return BudgetResult(self.budget.bound.text)
        spent.bound = self.budget.bound.text
        return spent

    def _save(self) -> None:
        partial = self.path.with_suffix(".part")
        partial.write_text(json_text({"key": self.key, "spent": self.spent.to_json()}), encoding="utf-8")
        partial.replace(self.path)


def _size(linear: Linear) -> int:
    rows, columns = linear.shape
    return rows * columns


def _floats(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a file, where those that are not finite are strings."""
    return {name: float(value) for name, value in figures.items()}


def _complaint(spent: BudgetResult, budget: Budget) -> str:
    if not spent.points:
        return (
            f"The {budget.seconds:.0f} s of --budget-time were over before any whole model was measured. Nothing was "
            "written; allow more time."
        )
    gate = budget.bound
    best = min(spent.points, key=lambda point: abs(point.figures.get(gate.quantity, math.inf) - gate.bound))
    return (
        f"The budget cannot be met ({gate.text}): of {len(spent.points)} measured models the best has "
        f"{best.share:.0%} of the linears' multiply-adds in integers, {_shown(best.figures)}. Nothing was written; "
        "allow more, or choose another scheme."
    )


def _shown(figures: Mapping[str, float]) -> str:
    if "ppl" in figures:
        change, kl, top1 = (figures[name] for name in ("ppl_change", "kl", "top1"))
        return f"perplexity {change:+.2%}, KL {kl:.4g} nats, top-1 {top1:.2%}"
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if not name.endswith("_reference"))
