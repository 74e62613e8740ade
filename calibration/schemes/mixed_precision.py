"""Which linears of w4 get eight bits where nobody says: few weights whose four bits cost much."""

from collections.abc import Sequence

from piston.calibration.graph.linears import Linear
from piston.calibration.recipe import is_narrow
from piston.calibration.schemes.outliers import has_outliers

# Of the layers at either end. Six of SmolLM2's thirty down_proj are 5 % of the weights and cost a fifth of what w4
# does, by KL divergence; all thirty, a quarter of the weights, cost 45 % (docs/quantization.md).
TENTH = 10


def usual_int8(linears: Sequence[Linear]) -> tuple[str, ...]:
    """Names of the narrow ones, and of those behind an activation function in the first and last tenth of layers."""
    behind = [linear.name for linear in linears if has_outliers([linear])]
    count = len(behind) // TENTH
    at_the_ends = {*behind[:count], *behind[len(behind) - count :]}
    return tuple(linear.name for linear in linears if is_narrow(linear) or linear.name in at_the_ends)
