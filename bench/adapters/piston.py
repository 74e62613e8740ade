"""Piston itself, through `load` and the library's own decode loop."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

LIBRARY = "piston.bench.local"
PACKAGES = ("piston", "onnxruntime", "numpy", "tokenizers")


def server(path: str, options: dict[str, Any]) -> list[str]:
    """The command of `piston serve`."""
    words = [sys.executable, "-P", "-m", "piston.cli.main", "serve", path, "--port", str(options["port"]), "--no-page"]
    words += ["--max-batch", str(options["max_batch"]), "--max-length", str(options["max_length"])]
    words += ["--threads", str(options["threads"])]
    return words if options.get("target") is None else [*words, "--target", options["target"]]


class Adapter:
    """A bundle in this process."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        self._run = library.LocalRun.open(path, options)

    def run(
        self, prompts: Sequence[Sequence[Any]], gen_len: int, step: Callable[[], None], **search: int
    ) -> list[list[int]]:
        """Generate greedily, or by a search, every row to the same length."""
        token_ids: list[list[int]] = self._run.run(prompts, gen_len, step, **search)
        return token_ids

    @property
    def parts(self) -> dict[str, float]:
        """Figures of the last run: seconds that went into tokenizing, sampling, the encoder."""
        parts: dict[str, float] = self._run.parts
        return parts
