"""Recipes whose stages never run: each writes one small directory, and what it cost comes from a seeded generator."""

import zlib
from pathlib import Path

import numpy as np
from making import RECIPE

from piston.pipeline.cache_key import digest_of_files, files_of_checkpoint
from piston.pipeline.child import Outcome


class FakeStages:
    """Runs as `stages.run_stage` does. `costs[python]` multiplies seconds and memory of that Python's stages."""

    def __init__(self, costs=None, noise=0.02, status=0):
        self.calls = []
        self._costs, self._noise, self._status = costs or {}, noise, status
        self._rng = np.random.default_rng(3)

    def __call__(self, words, directory, python):
        self.calls.append((python, tuple(words), directory))
        verb, scale = words[0], self._costs.get(python, 1.0)
        output = next(word.partition("=")[2] for word in words if word.startswith("--output="))
        read = words[-1]
        write(output, f"{verb} of {read.rpartition('/')[2]}")
        base = 1 + zlib.crc32(" ".join(w for w in words[1:-2] if "output" not in w).encode()) % 5
        seconds = scale * base * float(np.exp(self._rng.normal(0, self._noise)))
        peak = round(scale * base * 1e8 * float(np.exp(self._rng.normal(0, self._noise / 10))))
        outcome = Outcome(status=self._status, result={}, seconds=seconds, peak_bytes=peak, error="it broke")
        return outcome, 1.5 * seconds


def write(directory, text):
    Path(directory).mkdir(parents=True)
    (Path(directory) / "file").write_text(text)


def write_staged_recipe(directory, name="w8a8", targets=("ort-cpu",), edit=lambda text: text):
    """A recipe of export, calibrate and a build of each target, beside its checkpoint."""
    directory.mkdir(exist_ok=True)
    for file in ("model.gguf", "rows.txt", "held_out.txt"):
        (directory / file).write_text(file)
    sha256 = digest_of_files(files_of_checkpoint(directory / "model.gguf"))
    text = RECIPE.format(sha256=sha256).replace('["ort-cpu"]', f"[{', '.join(map(repr, targets))}]")
    (directory / f"{name}.toml").write_text(edit(text))
    return directory / f"{name}.toml"
