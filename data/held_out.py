"""Rows that calibration does not see, to check what it made: kept apart from the data, or of a file of their own."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from piston.data.overlap import Overlap, overlap
from piston.data.packing import Ids
from piston.data.rows import BUILTIN, RowOptions, Rows, hash_rows, load_rows, with_length
from piston.runtime.bundle import Bundle

NUM_ROWS = 8
# Of the n-grams; texts of one kind share less by chance: chat templates, descriptions of methods (builtin: to 3.5 %).
SHARED = 0.05


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows int64 [rows, tokens] that calibration has not seen, and how much of them it has seen all the same."""

    ids: Ids
    source: str
    overlap: Overlap

    @property
    def sha256(self) -> str:
        """Of the rows."""
        return hash_rows(self.ids)

    @property
    def share(self) -> float:
        """Of their n-grams, those that calibration has seen."""
        return self.overlap.share

    @property
    def warning(self) -> str | None:
        """One line if the rows are not apart, by more than texts of one kind share by chance."""
        return overlap_warning(self.overlap, len(self.ids), self.source)


def overlap_warning(overlap: Overlap, num_rows: int, source: str) -> str | None:
    """One line if so much of rows was also calibrated on that it is no chance."""
    if overlap.share < SHARED:
        return None
    return (
        f"warning: {len(overlap.rows)} of {num_rows} rows of {source} share text with the calibration rows "
        f"({overlap.share:.1%} of it), which flatters the model; give other text as --check-data."
    )


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
