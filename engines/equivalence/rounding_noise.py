"""How far float rounding alone moves the canonical graph: what a parity check may not hold against a lowering.

Two float32 kernels that both are right add in different orders. Most models make little of that, some, roughly
quantized ones above all, thirty times more, and then a bound that holds on one CPU fails on another. So where a check
fails, the canonical graph is compared with itself, its first activations nudged by one rounding, and the bounds are
widened by what that made of it, within limits: a wrong lowering is off by the size of what it computes.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import ParityError
from piston.engines.equivalence.lockstep import compare
from piston.graph.pattern import constant, emit, tidy
from piston.graph.tap import GIVEN

ROUNDING = 2.0**-23  # relative, of float32: every node behind the first activations rounds, here they alone are moved
SEEDS = (0, 1, 2)
# A lowering reorders hundreds of sums, the nudge is made once; still, on two CPUs SmolLM2 in float, w8 and w4 lay 0.4
# to 1.6 times as far from its lowered graph as from the furthest of the nudged ones (docs/decisions.md).
FACTOR = 4.0
MOST = 20.0  # 0.2 % of the largest logit

T = TypeVar("T")


def within_noise(check: Callable[[float], T], noise: Callable[[], float]) -> tuple[T, float]:
    """Run `check(1)`, and where it fails `check(noise())`; its result, and the slack that it passed with.

    `noise` is slack_of, which runs the canonical graph several times. It is not called where even MOST does not help.

    Raises:
        ParityError: no slack that the noise allows is enough.
    """
    try:
        return check(1.0), 1.0
    except ParityError as problem:
        try:
            check(MOST)
        except ParityError:
            raise problem from None
        if (slack := noise()) <= 1:
            raise
    return check(slack), slack


def slack_of(
    canonical: Path,
    cache: CacheSpec,
    *,
    max_length: int,
    windows: Sequence[int],
    work: Path | None = None,
    cross: CacheSpec | None = None,
) -> float:
    """By how much to widen the bounds of a parity check against `canonical`: at least 1, at most MOST.

    Copies of the graph and its weights are written below `work`, by default the system's temporary directory: the model
    directory is the user's, and perhaps cannot be written. Beside an INT8 cache it is 1: the two graphs share keys,
    values and what is attended, layer by layer.
    """
    if cache.dtype == "int8":
        return 1.0
    wide = cache.with_dtype("float32")
    worst = 0.0
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            nudged = Path(scratch) / canonical.name
            _nudge(canonical, nudged, seed)
            found = compare(canonical, nudged, wide, max_length=max_length, windows=windows, slack=np.inf, cross=cross)
        worst = max(worst, found.worst)
    return min(max(FACTOR * worst, 1.0), MOST)


def _nudge(canonical: Path, out: Path, seed: int) -> None:
    """A copy whose first norm's input is multiplied by one rounding more or less, channel by channel."""
    model = ir.load(canonical)
    norm = next(node for node in model.graph if node.op_type.endswith("Normalization"))
    hidden = norm.inputs[0]
    assert hidden is not None
    assert hidden.shape is not None
    signs = np.random.default_rng(seed).choice([-ROUNDING, ROUNDING], int(hidden.shape[-1]))  # type: ignore[arg-type]
    factors = constant(model.graph, "nudge", (1 + signs).astype(np.float32))
    readers = list(hidden.uses())
    moved = emit(norm, "Mul", [hidden, factors], like=hidden).outputs[0]
    for node, index in readers:
        node.replace_input_with(index, moved)
    for given in [value for value in model.graph.outputs if str(value.name).endswith(GIVEN)]:
        model.graph.outputs.remove(given)
    tidy(model)
    ir.save(model, out, external_data=f"{out.name}.data")
