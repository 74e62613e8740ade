"""A measured figure with what is known of its error."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval of 95 %; without one where there is but one run or window to judge by."""

    value: float
    low: float | None = None
    high: float | None = None
