"""Rows that calibration does not see, to check what it made: kept apart from the data, or of a file of their own."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from piston.data.overlap import Overlap, overlap
from piston.data.packing import Ids
from piston.data.rows import BUILTIN, RowOptions, Rows, hash_rows, load_rows, with_length
from piston.runtime.bundle import Bundle

Held = TypeVar("Held", bound=Sized)
NUM_ROWS = 8
# Of the n-grams; texts of one kind share less by chance: chat templates, descriptions of methods (builtin: to 3.5 %).
SHARED = 0.05


@dataclass(frozen=True, slots=True)
class HeldOutRows(ABC, Generic[Held]):
    """Rows that calibration has not seen, and how much of them it has seen all the same."""

    ids: Held
    source: str
    overlap: Overlap

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Of the rows."""

    @property
    def share(self) -> float:
        """Of their n-grams, those that calibration has seen."""
        return self.overlap.share

    @property
    def warning(self) -> str | None:
        """One line if so much of the rows was also calibrated on that it is no chance."""
        if self.overlap.share < SHARED:
            return None
        return (
            f"warning: {len(self.overlap.rows)} of {len(self.ids)} rows of {self.source} share text with the "
            f"calibration rows ({self.overlap.share:.1%} of it), which flatters the model; give other text as "
            "--check-data."
        )


class HeldOut(HeldOutRows[Ids]):
    """Rows int64 [rows, tokens]."""

    __slots__ = ()

    @property
    def sha256(self) -> str:
        """See HeldOutRows."""
        return hash_rows(self.ids)


def load_data(
    sources: Sequence[str | Path], model: Bundle, options: RowOptions, check_data: str | Path | None
) -> tuple[Rows | None, HeldOut]:
    """Rows to calibrate on, None without sources, and rows to check on.

    The latter are of `check_data`; else the last ones of the sources, or of the texts that come with Piston.

    Raises:
        MisuseError: see `load_rows`.
        TemplateError: the chat template refuses a conversation.
    """
    if not sources or check_data is not None:
        rows = load_rows(sources, model, options) if sources else None
        file = BUILTIN if check_data is None else check_data
        length = min(with_length(options, model).seq_len or 0, model.manifest.model.max_positions)
        apart = load_rows([file], model, dataclasses.replace(options, num_rows=NUM_ROWS, seq_len=length)).ids
        source = str(file)
    else:
        everything = load_rows(sources, model, dataclasses.replace(options, num_apart=NUM_ROWS))
        rows = dataclasses.replace(everything, ids=everything.ids[: options.num_rows])
        apart, source = everything.ids[options.num_rows :], "rows kept apart from the calibration data"
    return rows, HeldOut(apart, source, overlap(list(apart), [] if rows is None else list(rows.ids)))
