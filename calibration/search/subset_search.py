"""Which linears to leave in float: the fewest multiply-adds that meet a bound. Knows sets and numbers, no models.

Groups of linears that share an input are ranked by what quantizing them alone costs the model, by multiply-add. The
shortest beginning of that order that meets the bound is found by bisection; then single linears go back into integers,
the least sensitive first, as long as the bound is still met.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Kept = frozenset[str]


class OutOfTimeError(Exception):
    """The time of a search is over; raised by what measures, never shown."""


@dataclass(frozen=True, slots=True)
class Group:
    """Linears that read one value, their multiply-adds a token, and what quantizing them alone costs."""

    linears: Mapping[str, int]
    cost: float

    @property
    def rank(self) -> float:
        """Harm by multiply-add."""
        return self.cost / sum(self.linears.values())


@dataclass(frozen=True, slots=True)
class Found:
    """The best set: linears to keep in float, or None where no measured set meets the bound."""

    kept: Kept | None
    is_complete: bool  # False where time ran out before the search was over


def search(groups: Sequence[Group], is_met: Callable[[Kept], bool]) -> Found:
    """Find a small set of linears to keep.

    Args:
        groups: all that could be quantized.
        is_met: measures the model with these linears in float; raises OutOfTimeError.
    """
    order = sorted(groups, key=lambda group: -group.rank)
    best: Kept | None = None
    try:
        best = _shortest(order, is_met)
        if best is None:
            return Found(None, is_complete=True)
        for name in _least_harmful_first(order, best):
            if is_met(best - {name}):
                best -= {name}
    except _Stopped as stopped:
        return Found(stopped.best, is_complete=False)
    except OutOfTimeError:
        return Found(best, is_complete=False)
    return Found(best, is_complete=True)


class _Stopped(Exception):  # noqa: N818
    """Out of time during the bisection, with the best so far."""

    def __init__(self, best: Kept | None) -> None:
        super().__init__()
        self.best = best


def _shortest(order: Sequence[Group], is_met: Callable[[Kept], bool]) -> Kept | None:
    """The fewest groups from the front that meet the bound; one group at least stays quantized."""
    low, high = 0, len(order)  # the answer lies in low .. high; high: none is known to meet it
    step = 1
    best: Kept | None = None
    try:
        while low < high:
            # Small sets are likely: steps double from the front until one meets the bound, then halve.
            middle = min(low + step - 1, high - 1) if best is None else (low + high) // 2
            kept = _of(order[:middle])
            if is_met(kept):
                best, high = kept, middle
            else:
                low, step = middle + 1, 2 * step
    except OutOfTimeError:
        raise _Stopped(best) from None
    return best


def _least_harmful_first(order: Sequence[Group], kept: Kept) -> list[str]:
    """Of what is kept; in a group the one that costs most to keep first."""
    groups = [group for group in reversed(order) if kept & set(group.linears)]
    return [
        name
        for group in groups
        for name in sorted(group.linears, key=lambda name: (-group.linears[name], name))
        if name in kept
    ]


def _of(groups: Sequence[Group]) -> Kept:
    return frozenset(name for group in groups for name in group.linears)
