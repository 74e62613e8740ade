"""What quantizing linears alone costs the model (see `cost_of`) on a few rows of the calibration."""

from collections.abc import Iterable

from piston.calibration.graph.linears import Linear, by_weight
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.meter import AnyMeter, cost_of
from piston.core.console import Progress
from piston.data.packing import Ids

FEW_ROWS, FEW_LEN = 2, 128  # tokens that linears alone are measured on: a second a pass (135M, two cores)
FEW_TEXTS = 8  # rows of encoders, most of which give one output for each
# Times as many linears as are to be kept have their KL measured: errors of outputs bring the sensitive ones to the
# front, not in their order. Of SmolLM2-135M's six most sensitive the last is the fourteenth by error.
CANDIDATES = 3


def few(rows: Ids, *, of_encoder: bool = False) -> Ids:
    """The rows that linears alone are measured on; those of an encoder are whole, with the tokens that end them."""
    return rows[:FEW_TEXTS] if of_encoder else rows[:FEW_ROWS, :FEW_LEN]


class SoloSensitivity:
    """Measures linears alone.

    What is left when none is in integers (an INT8 cache, kept weights in INT8) is not their doing, and is taken off.

    Args:
        meter: open, with `rows` among its texts.
        rows: token ids [rows, tokens].
        floor: cost with no linear in integers, if it is known.
    """

    def __init__(self, meter: AnyMeter, rows: Ids, floor: float | None = None) -> None:
        self._meter, self._rows = meter, rows
        self.floor = self._cost(()) if floor is None else floor

    def cost_alone(self, names: Iterable[str]) -> float:
        """What these linears cost when they alone are in integers; 0 if they cost nothing."""
        return max(self._cost(names) - self.floor, 0.0)

    def _cost(self, names: Iterable[str]) -> float:
        return cost_of(self._meter.figures(names, self._rows))


def most_sensitive(
    meter: AnyMeter, prepared: Prepared, linears: Iterable[Linear], rows: Ids, count: int, progress: Progress
) -> dict[str, float]:
    """The cost of `CANDIDATES` times `count` linears, those whose own outputs INT8 moves furthest; the worst first.

    Worst is by multiply-add: what is kept is multiplied in float, and that is what it costs. Linears that share a
    weight are measured together and stand for one, under the name of the first.

    Args:
        meter: open, with `rows` among its texts.
        prepared: what each linear would become, with its error.
        linears: all of the graph.
        rows: token ids [rows, tokens].
        count: linears that are to be kept.
        progress: shows the linears measured.
    """
    runs = by_weight(linear for linear in linears if linear.name in prepared.weights)
    first = {linear.name: name for name, group in runs.items() for linear in group}
    ranked = dict.fromkeys(first[name] for name in prepared.errors if name in first)
    names = [*ranked][: CANDIDATES * count]
    work = {name: len(group) * group[0].shape[0] * group[0].shape[1] for name, group in runs.items()}
    alone, cost_alone, title = SoloSensitivity(meter, rows), dict[str, float](), "measuring the worst alone"
    with progress.phase(title):
        for done, name in enumerate(names):
            progress.step(title, done, len(names))
            cost_alone[name] = alone.cost_alone([linear.name for linear in runs[name]])
    return dict(sorted(cost_alone.items(), key=lambda item: -item[1] / work[item[0]]))
