"""OpenVINO GenAI: LLMPipeline with token ids.

Times are its own measurements: it can stream only one row, and for one row both agree.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIBRARY = "openvino_genai"
PACKAGES = ("openvino-genai", "openvino", "numpy")


def server(path: str, options: dict[str, Any]) -> list[str]:
    """The command of the small server around its continuous batching."""
    return [sys.executable, "-I", str(Path(__file__).with_name("openvino_server.py")), path, json.dumps(options)]


class Adapter:
    """A directory that optimum-intel exported."""

    def __init__(self, library: Any, path: str, options: dict[str, Any]) -> None:
        self._library = library
        self._tensor = importlib.import_module("openvino").Tensor
        self._numpy = importlib.import_module("numpy")
        self._pipeline = library.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=options["threads"])

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[..., None]) -> list[list[int]]:
        """Generate greedily, every row to the same length."""
        ids = self._numpy.array(prompts, dtype=self._numpy.int64)
        mask = self._numpy.ones_like(ids)
        inputs = self._library.TokenizedInputs(self._tensor(ids), self._tensor(mask))
        config = self._library.GenerationConfig(max_new_tokens=gen_len, ignore_eos=True, do_sample=False)
        result = self._pipeline.generate(inputs, config)
        for at in _times(result.perf_metrics.raw_metrics):
            step(at)
        return [list(row) for row in result.tokens]


def _times(raw: Any) -> list[float]:
    """Seconds from the call to each token, from its own clocks: microseconds to the first, then milliseconds."""
    first, times = raw.m_times_to_first_token[0] / 1e6, list(raw.m_new_token_times)
    return [first + (time - times[0]) / 1e3 for time in times]
