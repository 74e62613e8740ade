"""What the sampling head must answer, by the runtime's own arithmetic in numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams

# Sums of at most 64 weights in float32 are right to about 64 units in the last place, 4e-6; a number nearer than this
# to a boundary may fall to either side.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Draw:
    """Sampling options of a batch: each [batch], uniforms [batch, capacity]."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    uniforms: NDArray[np.float32]

    @classmethod
    def random(cls, rng: np.random.Generator, batch: int, capacity: int, max_top_k: int) -> "Draw":
        """Every third row greedy; the others anything that the head takes."""
        warm = rng.random(batch) < 2 / 3
        return cls(
            np.where(warm, rng.uniform(0.1, 2, batch), 0).astype(np.float32),
            rng.integers(1, max_top_k + 1, batch),
            np.where(rng.random(batch) < 0.3, 1, rng.uniform(0.05, 1, batch)).astype(np.float32),  # noqa: PLR2004
            rng.random((batch, capacity), dtype=np.float32),
        )

    def inputs(self) -> dict[str, NDArray[np.generic]]:
        """By the names of the head's inputs."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "uniforms": self.uniforms}

    def is_right(self, logits: NDArray[np.float32], index: int, position: int, token: int) -> bool:
        """Whether `token` may follow `position` of row `index`, given the logits [vocab] there."""
        if self.temperature[index] == 0:
            return int(logits.argmax()) == token
        options = SamplingParams(
            temperature=float(self.temperature[index]),
            top_k=int(self.top_k[index]),
            top_p=float(self.top_p[index]),
        )
        weights = np.exp(row.warp(logits, options).astype(np.float64))
        weights /= weights.sum()
        after = weights.cumsum()
        uniform = float(self.uniforms[index, position])
        lower, upper = after[token] - weights[token], after[token]
        if weights[token] > 0:
            return bool(lower - ROUNDING <= uniform <= upper + ROUNDING)
        return self._on_the_edge(logits, options, token)

    def _on_the_edge(self, logits: NDArray[np.float32], options: SamplingParams, token: int) -> bool:
        """Whether a slightly larger nucleus would hold `token`: sums in float32 may reach top_p one token later."""
        wider = SamplingParams(
            temperature=options.temperature, top_k=options.top_k, top_p=min(1.0, options.top_p + ROUNDING)
        )
        return bool(np.isfinite(row.warp(logits, wider)[token]))
