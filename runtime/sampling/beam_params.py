"""How to search for the likeliest answers; the search is in `generate/beam_search.py`."""

import math
from dataclasses import dataclass
from typing import Literal

from piston.core.errors import MisuseError

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams:
    """How to search; names and meanings are those of transformers' generate.

    Args:
        num_beams: answers that are extended at a time.
        length_penalty: exponent of the length that a score is divided by; above 0 it favours longer answers.
        early_stopping: True: as soon as there are `num_beams` answers; False: when those running cannot become better
            at their present length; "never": when they cannot at any length.
        num_return_sequences: answers to return, the best first.

    Raises:
        MisuseError: a value is out of range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("num_beams", "num_return_sequences"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MisuseError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if self.num_return_sequences > self.num_beams:
            raise MisuseError(
                f"num_return_sequences is {self.num_return_sequences}; it must be at most num_beams, which is "
                f"{self.num_beams}."
            )
        if not isinstance(self.length_penalty, int | float) or not math.isfinite(self.length_penalty):
            raise MisuseError(f"length_penalty is {self.length_penalty!r}; it must be a finite number.")
        if self.early_stopping not in (True, False, "never"):
            raise MisuseError(f"early_stopping is {self.early_stopping!r}; it must be True, False or 'never'.")
