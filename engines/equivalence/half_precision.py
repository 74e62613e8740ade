"""The parity check of an engine's float16 file: it answers as its float32 reference, as near as float16 comes."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import ParityError
from piston.engines.lowering.downcast import Float16RangeError
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions

# Of the largest logit. float16 has 11 bits: what is summed over a layer is off by some 2^-11, and more from layer to
# layer. A wrong constant, cast or cache is off by the size of the logits.
BOUND = 0.05
PROMPT_LENGTHS = (2, 7, 19)
NUM_STEPS = 6


@dataclass(frozen=True, slots=True)
class DowncastParity:
    """How far the two are apart, relative to the largest logit: recorded in the manifest."""

    max_relative: float
    bound: float
    compared: int  # rows of logits


def check_half_precision(
    float32: Path, wide: CacheSpec, narrow: Path, cache: CacheSpec, *, max_length: int
) -> DowncastParity:
    """Run both on ONNX Runtime's CPU kernels: prefills, then steps of all rows, along the reference's greedy tokens.

    Raises:
        Float16RangeError: the model's values go beyond float16.
        ParityError: logits beyond the bound, or none at all.
    """
    steps = min(NUM_STEPS, max_length - 1)
    lengths = sorted({max(1, min(length, max_length - steps)) for length in PROMPT_LENGTHS})
    sizes = {"num_slots": len(lengths), "capacity": lengths[-1] + steps, "options": OrtOptions(prepack=False)}
    rng, found, compared = np.random.default_rng(1), 0.0, 0
    with (
        closing(OrtEngine.open(float32, wide, **sizes)) as one,  # type: ignore[arg-type]
        closing(OrtEngine.open(narrow, cache, **sizes)) as other,  # type: ignore[arg-type]
    ):
        tokens: dict[int, int] = {}
        for length in lengths:
            ids = rng.integers(0, one.vocab_size, length).tolist()
            slot, same = one.cache.admit(), other.cache.admit()
            expected = one.prefill(slot, ids)[0]
            found = max(found, _apart(expected, other.prefill(same, ids)[0], f"a prefill of {length} tokens"))
            tokens[slot] = int(expected.argmax())
            compared += 1
        for step in range(steps):
            theirs, ours = one.step(tokens), other.step(tokens)
            for slot, expected in theirs.items():
                found = max(found, _apart(expected, ours[slot], f"step {step} of row {slot}"))
                compared += 1
            tokens = {slot: int(row.argmax()) for slot, row in theirs.items()}
    return DowncastParity(found, BOUND, compared)


def _apart(expected: np.ndarray, found: np.ndarray, where: str) -> float:
    if bool(np.isfinite(expected).all()) and not bool(np.isfinite(found).all()):
        # The two graphs are the same but for casts, so what has no value in float16 is beyond it.
        raise Float16RangeError(f"What becomes the logits of {where} goes")
    relative = float(np.abs(expected - found).max() / np.abs(expected).max())
    if not relative <= BOUND:  # NaN is not either
        raise ParityError(
            f"In float16 the logits of {where} are {relative:.2g} of the largest apart, {BOUND} is allowed; build this "
            "model for ort-cpu. Nothing was written."
        )
    return relative
