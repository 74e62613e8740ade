"""An engine that computes each text once: later passes over the same texts read their logits from a file."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from piston.core.errors import MisuseError
from piston.runtime.backends.engine import Engine, Logits


class CachedLogitsEngine:
    """Prefills of one slot, always whole texts in the same pieces; logits float32 lie on disk, not in memory."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.vocab_size = engine.vocab_size
        self.cache = engine.cache
        self._engine: Engine | None = engine
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}  # of a history and a piece: offset in bytes, rows
        self._history = ""
        self._file: BinaryIO = path.open("w+b")

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine."""
        before = self._history if self.cache.lengths[slot] else ""
        key = hashlib.sha256(f"{before} {num_logits} {list(token_ids)}".encode()).hexdigest()
        self._history = key
        if key not in self._places:
            if self._engine is None:
                raise MisuseError("The engine was let go, and this text was not read before.")
            logits = self._engine.prefill(slot, token_ids, num_logits)
            self._places[key] = self._file.seek(0, 2), len(logits)
            self._file.write(np.ascontiguousarray(logits, np.float32).tobytes())
            return logits
        self.cache.reserve(slot, len(token_ids))
        self.cache.advance(slot, len(token_ids))
        offset, rows = self._places[key]
        self._file.seek(offset)
        data = self._file.read(4 * rows * self.vocab_size)
        return np.frombuffer(data, np.float32).reshape(rows, self.vocab_size)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Texts are read here, not written."""
        raise MisuseError(f"A remembered engine only reads texts; {len(tokens)} tokens were to be decoded.")

    def let_go(self) -> None:
        """Close the engine: from now on only texts that it has read are known."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def close(self) -> None:
        """Close the engine, and remove the file."""
        self.let_go()
        self._file.close()
        self._path.unlink(missing_ok=True)
