"""What a graph is run on to calibrate it: rows of tokens, inputs of a module, sources and answers."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from piston.calibration.observe.row_files import RowFiles
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import ENCODER, is_cross
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.data.arrays import Feeds, hash_feeds
from piston.data.packing import Ids
from piston.data.rows import hash_rows
from piston.evaluation.encoder_decoders import ForcedAnswer, hash_answers
from piston.runtime.backends.session import OrtOptions, OrtSession

Values = dict[str, NDArray[Any]]
MOST_BYTES = 4 << 30  # of encoder states on disk


class Inputs(Protocol):
    """Rows of any lengths; the same for every call."""

    def __len__(self) -> int: ...

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where rows are no text."""

    @property
    def num_positions(self) -> int:
        """Positions of all rows together."""

    @property
    def key(self) -> str:
        """A hash of all rows."""

    def tokens(self, index: int) -> Ids | None:
        """Token ids of a row, int64 [tokens], each from position 0; None for a row of something else."""

    def others(self, index: int, names: Collection[str]) -> Values:
        """Those of the named inputs of the graph that tokens do not give, the same for every token of the row."""


class TokenRows:
    """Rows [rows, tokens] of token ids."""

    def __init__(self, ids: Ids) -> None:
        if ids.ndim != 2 or not ids.size:  # noqa: PLR2004
            raise MisuseError(f"Calibration rows have shape {list(ids.shape)}; they must be [rows, tokens], not empty.")
        self.ids = ids
        self.longest, self.num_positions = int(ids.shape[1]), int(ids.size)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> str:
        """See Inputs."""
        return hash_rows(self.ids)

    def tokens(self, index: int) -> Ids:
        """See Inputs."""
        row: Ids = self.ids[index]
        return row

    def others(self, index: int, names: Collection[str]) -> Values:
        """See Inputs."""
        del index, names
        return {}


class ArrayRows:
    """Inputs by name of a module of one's own, as often as it is run."""

    longest = 0

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.feeds = feeds
        self.num_positions = len(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    @property
    def key(self) -> str:
        """See Inputs."""
        return hash_feeds(self.feeds)

    def tokens(self, index: int) -> None:
        """See Inputs."""

    def others(self, index: int, names: Collection[str]) -> Values:
        """See Inputs."""
        return {name: array for name, array in self.feeds[index].items() if name in names}


class SourceInputs:
    """What the encoder of an encoder-decoder reads."""

    def __init__(self, answers: Sequence[ForcedAnswer]) -> None:
        self.answers = answers
        lengths = [answer.source.length for answer in answers]
        is_text = "input_ids" in answers[0].source.feeds
        self.longest, self.num_positions = max(lengths) if is_text else 0, sum(lengths)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def key(self) -> str:
        """See Inputs."""
        return hash_answers(self.answers)

    def tokens(self, index: int) -> Ids | None:
        """See Inputs."""
        ids = self.answers[index].source.feeds.get("input_ids")
        return None if ids is None else ids[0]

    def others(self, index: int, names: Collection[str]) -> Values:
        """See Inputs."""
        feeds = self.answers[index].source.feeds
        return {name: feeds[name] for name in names if name in feeds}


class AnswerInputs:
    """What the decoder reads: the tokens of an answer, and the states that the float encoder makes of its source.

    States are computed when they are asked for, since of speech a row has tens of megabytes, and kept on disk: layer by
    layer GPTQ asks for those of each row once a segment. Rows beyond `most_bytes` are computed again.

    Args:
        answers: the rows.
        encoder: in float.
        work: a directory for the states.
        most_bytes: on disk.
    """

    def __init__(
        self, answers: Sequence[ForcedAnswer], encoder: OrtSession, work: Path, most_bytes: int = MOST_BYTES
    ) -> None:
        self.answers = answers
        self._encoder = encoder
        self._files = RowFiles(work)
        self._kept: set[int] = set()
        self._room = most_bytes
        self._lock = Lock()  # of the room
        rows = [len(answer.read_ids) for answer in answers]
        self.longest, self.num_positions = max(rows), sum(rows)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def key(self) -> str:
        """See Inputs."""
        return hash_answers(self.answers)

    def tokens(self, index: int) -> Ids:
        """See Inputs."""
        return np.array(self.answers[index].read_ids, np.int64)

    def others(self, index: int, names: Collection[str]) -> Values:
        """See Inputs; the encoder runs only where the names have a state of its."""
        found: Values = {"source_lengths": np.array([self.answers[index].source.length])}
        if states := [name for name in names if is_cross(name)]:
            found |= self._states(index, states)
        return {name: found[name] for name in names if name in found}

    def _states(self, index: int, names: Sequence[str]) -> Values:
        if index in self._kept:
            return {name: self._files.load(f"{index}-{name}") for name in names}
        found = self._encoder.run(dict(self.answers[index].source.feeds))
        size = sum(array.nbytes for array in found.values())
        with self._lock:
            if is_kept := size <= self._room:
                self._room -= size
        if is_kept:
            for name, array in found.items():
                self._files.save(f"{index}-{name}", array)
            self._kept.add(index)
        return found


RowsLike = Ids | Sequence[Feeds] | Inputs


@contextmanager
def encoder_of(model_dir: Path, manifest: Manifest) -> Iterator[OrtSession]:
    """The float encoder of an encoder-decoder."""
    options = OrtOptions(optimize=True)
    with closing(OrtSession.open(model_dir / ENCODER / GRAPH, manifest.graphs[ENCODER], options)) as session:
        yield session


def inputs_of(rows: RowsLike) -> Inputs:
    """Rows of token ids, and feeds, as inputs; raises MisuseError where ids are not [rows, tokens]."""
    if isinstance(rows, np.ndarray):
        return TokenRows(rows)
    return ArrayRows(rows) if isinstance(rows, Sequence) else rows
