"""The parity check after every lowering: canonical and lowered graph answer the same prompts, or nothing is written.

They run side by side (lockstep.py). Where a model makes much of little, the bounds follow what float rounding alone
does to the canonical graph (rounding_noise.py). Quantized weights are multiplied in float here; that ONNX Runtime's
integer products of the very same weights agree with that is proved apart, node by node.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import Manifest
from piston.engines.equivalence.activation_injection import add_activation_outputs
from piston.engines.equivalence.lockstep import compare
from piston.engines.equivalence.rounding_noise import slack_of, within_noise


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the two are apart: recorded in the manifest."""

    max_abs: float
    bound: float
    steps: int
    prompt_lengths: list[int]
    compared: int  # rows of logits, each with the same greedy token
    activations: int  # compared in every run, and then shared: rounded to codes, or beside an INT8 cache attended
    code_distance: float = 0.0  # of an INT8 cache: the most steps that a code is from what it stands for
    slack: float = 1.0  # by how much the bound was widened for the canonical graph's own noise


def check_parity(
    canonical: Path,
    lowered: Path,
    cache: CacheSpec,
    *,
    max_length: int,
    windows: Sequence[int] = (),
    cross: CacheSpec | None = None,
) -> Parity:
    """Compare the float32 graph at `canonical` with `lowered`, which has `cache`, and `cross` if it has an encoder.

    Raises:
        ParityError: logits beyond the bound or another greedy token; the message names where, and the layer.
    """
    run: dict[str, Any] = {"max_length": max_length, "windows": windows, "cross": cross}
    pair, slack = within_noise(
        lambda slack: compare(canonical, lowered, cache, **run, slack=slack),
        lambda: slack_of(canonical, cache, **run, work=lowered.parent),
    )
    return Parity(
        max_abs=pair.max_abs,
        bound=pair.bound * slack,
        steps=pair.steps,
        prompt_lengths=pair.prompt_lengths,
        compared=pair.compared,
        activations=len(pair.tape.names),
        code_distance=pair.code_distance,
        slack=slack,
    )


@contextmanager
def reference_of(canonical: Path, model: Manifest, work: Path, *, int8_head: bool = False) -> Iterator[Path]:
    """The canonical graph as the parity check reads it: itself, or a copy below `work` for as long as the block lasts.

    A copy is in float32: the CPU has no bfloat16 kernels, and float16 rounding would drown what is looked for;
    widening is exact. It gives out the activations that it rounds to codes, and its head is in INT8 where the engine's
    is.
    """
    if model.model.dtype == "float32" and model.model.scheme == "fp" and not int8_head:
        yield canonical
        return
    from piston.engines.lowering.quantize_head import QuantizeHeadPass
    from piston.graph.upcast import Float32Pass

    copy = work / "reference"
    copy.mkdir()
    graph = ir.load(canonical)
    Float32Pass()(graph)
    if int8_head:
        QuantizeHeadPass()(graph)
    add_activation_outputs(graph)
    ir.save(graph, copy / canonical.name, external_data=f"{canonical.name}.data")
    try:
        yield copy / canonical.name
    finally:
        shutil.rmtree(copy)
