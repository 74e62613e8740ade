"""What a calibration gives back."""

from dataclasses import dataclass

from piston.calibration.check import Check
from piston.calibration.observe.saturation import Saturated
from piston.calibration.recipe import Recipe
from piston.calibration.search.budget import BudgetResult
from piston.calibration.size import Size
from piston.calibration.task_check import TaskCheck
from piston.core.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out: which linears are quantized and which were kept, and what was measured."""

    manifest: Manifest
    recipe: Recipe  # settled: it gives the same model again from the same data, without measuring what to keep
    quantized: list[str]
    kept: list[str]  # their activations are in float
    weight_only: list[str]  # of these, those whose weights are in INT8 all the same
    size: Size
    sensitivity: dict[str, float]  # w8a8: each linear's error in INT8, worst first
    # With keep_worst: the KL divergence of each linear that was measured alone, the most per multiply-add first.
    cost_alone: dict[str, float]
    check: Check | TaskCheck
    spent: BudgetResult | None  # on a budget
    saturated: dict[str, Saturated]  # by what reads the value, or its cache; empty unless asked for
    data_warning: str | None  # the recipe was made with other data

    @property
    def remainders(self) -> dict[str, int]:
        """w8a8: of each linear whose input has a remainder, how many times its scale the remainder's is."""
        return dict(self.manifest.made_by["calibration"]["remainders"])
