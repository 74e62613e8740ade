"""Two encoder graphs on the same ragged batches: every output of every row is compared.

Where activations are rounded to codes the lowered graph gets the canonical graph's activations, and what it would have
rounded is compared instead (activation_injection.py): so every piece is held to the bound of float arithmetic.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import SOURCE, GraphInterface
from piston.core.bundle.manifest import Manifest
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import Tape, injectable
from piston.engines.equivalence.answers import reference_of
from piston.graph.qdq import remainders
from piston.graph.tap import GIVEN, OWN
from piston.runtime.backends.session import OrtOptions, OrtSession, open_session
from piston.runtime.ragged import padded

AUDIO_ROWS = 2
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # tokens; rows of one batch, and each row alone
ABSOLUTE, RELATIVE = 1e-3, 1e-4  # of activations, float32: the larger of the two, RELATIVE times the largest
OUTPUT = 1e-4  # of an output row, by its length

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RaggedParity:
    """What was compared; `max_relative` is the largest distance of an output row by its length."""

    max_relative: float
    bound: float
    rows: int
    shortest: int
    longest: int
    activations: int  # compared in every run, and then shared


def check_ragged(
    canonical: Path, lowered: Path, interface: GraphInterface, model: Manifest, *, max_length: int
) -> RaggedParity:
    """Run both graphs on random rows; copies of them lie below the parent of `lowered` for as long as that takes.

    Raises:
        ParityError: an output, or an activation before it is rounded, is further from the canonical graph's than its
            bound.
        EngineError: the lowered graph is not of the interface.
    """
    OrtSession.open(lowered, interface).close()
    batches, sizes = random_batches(interface, model.model.vocab_size, max_length)
    worst = 0.0
    with (
        reference_of(canonical, model, lowered.parent) as exposed,
        injectable(lowered) as (forced, names, has_nbits),
        closing(inner_session(exposed, OrtOptions(optimize=True, prepack=False))) as reference,
        closing(inner_session(forced, OrtOptions(prepack=not has_nbits))) as candidate,
    ):
        tape = Tape(names, remainders(ir.load(canonical).graph))
        for feeds in batches:
            expected = reference.run(feeds)
            given = {f"{name}{GIVEN}": expected[f"{name}{GIVEN}"] for name in names}
            found = candidate.run(feeds | given)
            tape.compare(named_without(expected, names, GIVEN), named_without(found, names, OWN))
            check_activations(tape)
            for output in interface.outputs:
                axis = next((axis for axis, size in enumerate(output.shape) if size in {"seq", SOURCE}), None)
                pair = expected[output.name], found[output.name]
                worst = max(worst, *_distances(*pair, axis, feeds.get("lengths")))
                if not worst <= OUTPUT:
                    raise ParityError(
                        f"The lowered graph differs from the canonical one at {output.name}: by {worst:.2g} of its "
                        f"length; allowed are {OUTPUT:.0g}. Nothing was written."
                    )
    return RaggedParity(worst, OUTPUT, len(sizes), min(sizes), max(sizes), len(names))


def inner_session(path: Path, options: OrtOptions) -> OrtSession:
    """Of a graph with more inputs and outputs than its interface has."""
    return OrtSession(open_session(path, options))


def named_without(outputs: dict[str, Any], names: list[str], suffix: str) -> dict[str, Array]:
    """The outputs of these names with a suffix, by the names without it."""
    return {name: outputs[f"{name}{suffix}"] for name in names}


def check_activations(tape: Tape) -> None:
    """Raise ParityError where what is rounded to codes is further from the canonical graph's than its bound."""
    for name, (difference, largest) in tape.apart.items():
        bound = max(ABSOLUTE, RELATIVE * largest)
        if not difference <= bound:
            raise ParityError(
                f"The lowered graph differs from the canonical one before {name}: an activation differs by "
                f"{difference:.3g}, allowed are {bound:.3g}. Nothing was written."
            )


def random_batches(
    interface: GraphInterface, vocab_size: int, max_length: int
) -> tuple[list[dict[str, NDArray[Any]]], list[int]]:
    """Random rows in one batch and each alone, and their sizes: of tokens, or of audio that all has one size."""
    rng = np.random.default_rng(0)
    audio = next((tensor for tensor in interface.inputs if tensor.role == "audio"), None)
    if audio is not None:
        sizes = [size for size in audio.shape if isinstance(size, int)]
        windows = rng.uniform(-1, 1.5, (AUDIO_ROWS, *sizes)).astype(np.float32)
        return [{audio.name: windows}, *({audio.name: row[None]} for row in windows)], [sizes[-1]] * AUDIO_ROWS
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    rows = [rng.integers(0, vocab_size, size) for size in lengths]
    return [
        padded(batch, [[int(2 * place >= len(row)) for place in range(len(row))] for row in batch])
        for batch in (rows, *([row] for row in rows))
    ], lengths


def _distances(expected: Array, found: Array, axis: int | None, lengths: NDArray[np.int64] | None) -> Iterator[float]:
    """Of each row by its length; without those of the padding along the `axis` of its tokens."""
    for index, (wanted, given) in enumerate(zip(expected, found, strict=True)):
        left, right = given, wanted
        if axis is not None and lengths is not None:
            count = int(lengths[index])
            left, right = (np.moveaxis(row, axis - 1, 0)[:count] for row in (given, wanted))
        yield float(np.linalg.norm(left - right) / max(float(np.linalg.norm(right)), 1e-30))
