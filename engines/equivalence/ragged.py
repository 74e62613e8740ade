"""Two encoder graphs on the same ragged batches: every output of every row is compared.

Where activations are rounded to codes the lowered graph gets the canonical graph's activations, and what it would have
rounded is compared instead (activation_injection.py): so every piece is held to the bound of float arithmetic.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import GraphInterface
from piston.core.bundle.manifest import Manifest
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import Tape, injectable
from piston.engines.equivalence.answers import reference_of
from piston.graph.qdq import remainders
from piston.graph.tap import GIVEN, OWN
from piston.runtime.backends.session import OrtOptions, OrtSession, open_session
from piston.runtime.ragged import Ids, padded

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
    rows, worst = _rows(model.model.vocab_size, max_length), 0.0
    with (
        reference_of(canonical, model, lowered.parent) as exposed,
        injectable(lowered) as (forced, names, has_nbits),
        closing(_session(exposed, OrtOptions(optimize=True, prepack=False))) as reference,
        closing(_session(forced, OrtOptions(prepack=not has_nbits))) as candidate,
    ):
        tape = Tape(names, remainders(ir.load(canonical).graph))
        for batch in (rows, *([row] for row in rows)):
            feeds = padded(batch, [[int(2 * place >= len(row)) for place in range(len(row))] for row in batch])
            expected = reference.run(feeds)
            given = {f"{name}{GIVEN}": expected[f"{name}{GIVEN}"] for name in names}
            found = candidate.run(feeds | given)
            tape.compare(_named(expected, names, GIVEN), _named(found, names, OWN))
            _check_activations(tape)
            for output in interface.outputs:
                is_per_token = len(output.shape) > 2  # noqa: PLR2004 - [batch, width]
                tokens = feeds["lengths"] if is_per_token else [None] * len(batch)
                worst = max(worst, *_distances(expected[output.name], found[output.name], tokens))
                if not worst <= OUTPUT:
                    raise ParityError(
                        f"The lowered graph parts from the canonical one at {output.name}: by {worst:.2g} of its "
                        f"length; allowed are {OUTPUT:.0g}. Nothing was written."
                    )
    sizes = [len(row) for row in rows]
    return RaggedParity(worst, OUTPUT, len(rows), min(sizes), max(sizes), len(names))


def _session(path: Path, options: OrtOptions) -> OrtSession:
    """Of a graph with more inputs and outputs than its interface has."""
    return OrtSession(open_session(path, options))


def _named(outputs: dict[str, Any], names: list[str], suffix: str) -> dict[str, Array]:
    return {name: outputs[f"{name}{suffix}"] for name in names}


def _check_activations(tape: Tape) -> None:
    for name, (difference, largest) in tape.apart.items():
        bound = max(ABSOLUTE, RELATIVE * largest)
        if not difference <= bound:
            raise ParityError(
                f"The lowered graph parts from the canonical one before {name}: an activation differs by "
                f"{difference:.3g}, allowed are {bound:.3g}. Nothing was written."
            )


def _rows(vocab_size: int, max_length: int) -> list[Ids]:
    rng = np.random.default_rng(0)
    sizes = sorted({min(length, max_length) for length in LENGTHS})
    return [rng.integers(0, vocab_size, size) for size in sizes]


def _distances(expected: Array, found: Array, tokens: Iterable[int | None]) -> Iterator[float]:
    """Of each row by its length; of outputs for every token without those of the padding."""
    for wanted, given, count in zip(expected, found, tokens, strict=True):
        difference = np.linalg.norm(given[:count] - wanted[:count])
        yield float(difference / max(float(np.linalg.norm(wanted[:count])), 1e-30))
