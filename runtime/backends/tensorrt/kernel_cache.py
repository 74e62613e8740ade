"""Kernels that TensorRT-RTX compiles in the first run, kept for the next load: an IRuntimeCache in a file.

They are executable code like the plan. A cache is used only if its bytes have the hash in the record next to it, which
also names the plan they belong to; otherwise it is ignored and written again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Self

from piston.core.json_text import json_text
from piston.runtime.backends.tensorrt.log import accepted

SUFFIX = ".kernels"


class KernelCache:
    """One plan's compiled kernels in a directory; errors of the file system are ignored and nothing is kept."""

    def __init__(self, directory: Path, name: str, plan_sha256: str) -> None:
        self.path = directory / (name + SUFFIX)
        self.record_path = directory / (name + SUFFIX + ".json")
        self._plan_sha256 = plan_sha256
        self._cache: Any = None
        self._saved = ""

    @classmethod
    def beside(cls, plan: Path, plan_sha256: str, cache_dir: Path) -> Self:
        """The cache next to a plan or, if that directory cannot be written, in `cache_dir`."""
        if os.access(plan.parent, os.W_OK):
            return cls(plan.parent, plan.name, plan_sha256)
        return cls(cache_dir, plan_sha256, plan_sha256)

    def attach(self, config: Any) -> None:
        """Give a runtime config the kept kernels, or an empty cache for contexts to fill; all configs share it."""
        if self._cache is None:
            self._cache = accepted(config.create_runtime_cache())
            data = self._verified()
            if data is not None and self._cache.deserialize(data):  # refuses kernels of another driver or GPU
                self._saved = hashlib.sha256(data).hexdigest()
        accepted(config.set_runtime_cache(self._cache))

    def save(self) -> None:
        """Write the kernels if there are new ones."""
        if self._cache is None or (memory := self._cache.serialize()) is None:
            return
        data = bytes(memory)
        digest = hashlib.sha256(data).hexdigest()
        if not data or digest == self._saved:
            return
        record = {"sha256": digest, "plan_sha256": self._plan_sha256}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, data)
            _replace(self.record_path, json_text(record).encode())
            self._saved = digest

    def _verified(self) -> bytes | None:
        try:
            data = self.path.read_bytes()
            record = json.loads(self.record_path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        wanted = {"sha256": hashlib.sha256(data).hexdigest(), "plan_sha256": self._plan_sha256}
        return data if record == wanted else None


def _replace(path: Path, data: bytes) -> None:
    """Write a temporary file and rename it: readers see the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
