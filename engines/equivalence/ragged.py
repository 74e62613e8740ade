"""Two encoder graphs on the same ragged batches: every output of every row is compared.

Where activations are rounded to codes the lowered graph gets the canonical graph's activations, and what it would have
rounded is compared instead (activation_injection.py): so every piece is held to the bound of float arithmetic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import SOURCE, GraphInterface
from piston.core.bundle.manifest import Manifest
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import Tape, injectable
from piston.engines.equivalence.answers import reference_of
from piston.graph.qdq import Remainder, remainders
from piston.graph.tap import GIVEN, OWN
from piston.runtime.backends.session import OrtOptions, OrtSession, Session, open_session
from piston.runtime.ragged import padded

AUDIO_ROWS = 2
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # tokens; rows of one batch, and each row alone

Array = NDArray[np.float32]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a graph may be from the canonical one."""

    absolute: float = 1e-3  # of activations: the larger of the two
    relative: float = 1e-4  # to the largest
    output: float = 1e-4  # of an output row, by its length


FLOAT32 = Bounds()


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
    with (
        reference_of(canonical, model, lowered.parent) as exposed,
        injectable(lowered) as (forced, names, has_nbits),
        closing(inner_session(exposed, OrtOptions(optimize=True, prepack=False))) as reference,
        closing(inner_session(forced, OrtOptions(prepack=not has_nbits))) as candidate,
    ):
        pair = RaggedPair(interface, reference, candidate, names, remainders(ir.load(canonical).graph), FLOAT32)
        worst = max(pair.compare(feeds) for feeds in batches)
    return RaggedParity(worst, FLOAT32.output, len(sizes), min(sizes), max(sizes), len(names))


def inner_session(path: Path, options: OrtOptions) -> OrtSession:
    """Of a graph with more inputs and outputs than its interface has."""
    return OrtSession(open_session(path, options))


@dataclass(frozen=True, slots=True)
class RaggedPair:
    """Two graphs that get the same rows; the second gets the activations of the first, by their names."""

    interface: GraphInterface
    reference: Session
    candidate: Session
    names: Sequence[str]  # of activations
    remainders: Mapping[str, Remainder]  # by the names of their codes
    bounds: Bounds
    types: Mapping[str, Any] = field(default_factory=dict)  # of the inputs that get activations, if not float32
    look: Callable[[Feeds, dict[str, Array]], None] | None = None  # at what the first computed

    def compare(self, feeds: Feeds) -> float:
        """The largest distance of an output row by its length; raises ParityError beyond a bound."""
        names, worst = list(self.names), 0.0
        expected = self.reference.run(feeds)
        if self.look is not None:
            self.look(feeds, expected)
        found = self.candidate.run(feeds | self.given(expected))
        tape = Tape(names, self.remainders)
        tape.compare(named_without(expected, names, GIVEN, feeds), named_without(found, names, OWN, feeds))
        check_activations(tape, self.bounds, self.remainders if self.bounds is not FLOAT32 else {})
        for output in self.interface.outputs:
            axis = next((axis for axis, size in enumerate(output.shape) if size in {"seq", SOURCE}), None)
            pair = expected[output.name], found[output.name].astype(np.float32)
            worst = max(worst, *_distances(*pair, axis, feeds.get("lengths")))
            if not worst <= self.bounds.output:
                raise ParityError(
                    f"The lowered graph differs from the canonical one at {output.name}: by {worst:.2g} of its "
                    f"length; allowed are {self.bounds.output:.0g}. Nothing was written."
                )
        return worst

    def given(self, expected: Mapping[str, NDArray[Any]]) -> Feeds:
        """The activations that the second graph gets, of the outputs of the first."""
        names = [f"{name}{GIVEN}" for name in self.names]
        return {name: expected[name].astype(self.types.get(name, np.float32)) for name in names}


def named_without(
    outputs: Mapping[str, Any], names: Sequence[str], suffix: str, feeds: Mapping[str, Any] | None = None
) -> dict[str, Array]:
    """The outputs of these names with a suffix, by the names without it; of `feeds` without what is padding."""
    return {
        name: without_padding(outputs[f"{name}{suffix}"].astype(np.float32, copy=False), feeds or {}) for name in names
    }


def check_activations(
    tape: Tape, bounds: Bounds = FLOAT32, remainders: Mapping[str, Remainder] = MappingProxyType({})
) -> None:
    """Raise ParityError where an activation is further from the canonical graph's than its bound.

    `remainders` are given for types of fewer bits than float32: where a value falls to the other side of an edge, its
    remainder has what the code lost.
    """
    for name, (difference, largest) in tape.apart.items():
        step = remainders[name].step if name in remainders else 0.0
        bound = max(bounds.absolute, bounds.relative * largest) + step
        if not difference <= bound:
            raise ParityError(
                f"The lowered graph differs from the canonical one before {name}: an activation differs by "
                f"{difference:.3g}, allowed are {bound:.3g}. Nothing was written."
            )


def without_padding(values: NDArray[Any], feeds: Mapping[str, Any]) -> NDArray[Any]:
    """Of values [batch, seq, ..] those of tokens, one after the other; others as they are."""
    if "lengths" not in feeds or values.shape[:2] != feeds["input_ids"].shape:
        return values
    tokens: NDArray[Any] = values[np.arange(values.shape[1]) < feeds["lengths"][:, None]]
    return tokens


def random_batches(
    interface: GraphInterface, vocab_size: int, max_length: int, *, longest: int = 0
) -> tuple[list[Feeds], list[int]]:
    """Random rows in one batch and each alone, and their sizes: of tokens, or of audio that all has one size.

    Then a row of `longest` tokens alone, if the model reads as many as that, or else of all that it reads.
    """
    rng = np.random.default_rng(0)
    audio = next((tensor for tensor in interface.inputs if tensor.role == "audio"), None)
    if audio is not None:
        sizes = [size for size in audio.shape if isinstance(size, int)]
        windows = rng.uniform(-1, 1.5, (AUDIO_ROWS, *sizes)).astype(np.float32)
        return [{audio.name: windows}, *({audio.name: row[None]} for row in windows)], [sizes[-1]] * AUDIO_ROWS
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    rows = [rng.integers(0, vocab_size, size) for size in lengths]
    batches = [rows, *([row] for row in rows)]
    if min(longest, max_length) > lengths[-1]:
        lengths.append(min(longest, max_length))
        batches.append([rng.integers(0, vocab_size, lengths[-1])])
    return [
        padded(batch, [[int(2 * place >= len(row)) for place in range(len(row))] for row in batch]) for batch in batches
    ], lengths


def _distances(expected: Array, found: Array, axis: int | None, lengths: NDArray[np.int64] | None) -> Iterator[float]:
    """Of each row by its length; without those of the padding along the `axis` of its tokens."""
    for index, (wanted, given) in enumerate(zip(expected, found, strict=True)):
        left, right = given, wanted
        if axis is not None and lengths is not None:
            count = int(lengths[index])
            left, right = (np.moveaxis(row, axis - 1, 0)[:count] for row in (given, wanted))
        yield float(np.linalg.norm(left - right) / max(float(np.linalg.norm(right)), 1e-30))
