"""What quantizing linears alone costs the model: KL divergence from it on a few rows of the calibration."""

from collections.abc import Iterable

from piston.calibration.graph.linears import Linear
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.meter import Meter
from piston.core.console import Progress
from piston.data.packing import Ids

FEW_ROWS, FEW_LEN = 2, 128  # tokens that linears alone are measured on: a second a pass (135M, two cores)
# Times as many linears as are to be kept have their KL measured: errors of outputs bring the sensitive ones to the
# front, not in their order. Of SmolLM2-135M's six most sensitive the last is the fourteenth by error.
CANDIDATES = 3


def few(rows: Ids) -> Ids:
    """The rows that linears alone are measured on."""
    return rows[:FEW_ROWS, :FEW_LEN]


class SoloSensitivity:
    """Measures linears alone.

    What is left when none is in integers (an INT8 cache, kept weights in INT8) is not their doing, and is taken off.

    Args:
        meter: open, with `rows` among its texts.
        rows: token ids [rows, tokens].
        floor: KL with no linear in integers, if it is known.
    """

    def __init__(self, meter: Meter, rows: Ids, floor: float | None = None) -> None:
        self._meter, self._rows = meter, rows
        self.floor = self._kl(()) if floor is None else floor

    def harm(self, names: Iterable[str]) -> float:
        """Nats a token that these linears cost when they alone are in integers; 0 if they cost nothing."""
        return max(self._kl(names) - self.floor, 0.0)

    def _kl(self, names: Iterable[str]) -> float:
        return self._meter.figures(names, self._rows)["kl"]


def most_harmful(
    meter: Meter, prepared: Prepared, linears: Iterable[Linear], rows: Ids, count: int, progress: Progress
) -> dict[str, float]:
    """The harm of `CANDIDATES` times `count` linears, those whose own outputs INT8 moves furthest; the worst first.

    Worst is by multiply-add: what is kept is multiplied in float, and that is what it costs.

    Args:
        meter: open, with `rows` among its texts.
        prepared: what each linear would become, with its error.
        linears: all of the graph.
        rows: token ids [rows, tokens].
        count: linears that are to be kept.
        progress: shows the linears measured.
    """
    names = [name for name in prepared.errors if name in prepared.weights][: CANDIDATES * count]
    work = {linear.name: linear.shape[0] * linear.shape[1] for linear in linears}
    alone, harm, title = SoloSensitivity(meter, rows), dict[str, float](), "measuring the worst alone"
    with progress.phase(title):
        for done, name in enumerate(names):
            progress.step(title, done, len(names))
            harm[name] = alone.harm([name])
    return dict(sorted(harm.items(), key=lambda item: -item[1] / work[item[0]]))
