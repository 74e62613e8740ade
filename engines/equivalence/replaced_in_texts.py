"""Parity of Piston's own kernels in encoders: each gives what the nodes it replaced give, on random texts.

As in replaced_nodes.py every kernel reads what the engine it was made from computed. What it gives is compared where
no padding is: kernels skip padding. And it is found out whether a text gets the same bits alone and in a batch.
"""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import GraphInterface
from piston.core.bundle.manifest import Manifest
from piston.engines.equivalence.ragged import Bounds, RaggedPair, random_batches, without_padding
from piston.engines.equivalence.replaced_nodes import ReplacedParity, isolate
from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside
from piston.runtime.backends.session import OrtOptions, OrtSession, open_session

MOST_MOVED = 0.05  # of an output row, by its length, by products in bfloat16: as golden outputs of that type may be
Array = NDArray[Any]


def check_replaced_in_texts(
    before: Path, after: Path, interface: GraphInterface, model: Manifest, *, max_length: int
) -> ReplacedParity:
    """Compare the encoder `after` with `before`, which it was made from, kernel by kernel.

    Raises:
        ParityError: a kernel is beyond its bound; the message names it.
        EngineError: the engine is not of the interface.
    """
    batches, _ = random_batches(interface, model.model.vocab_size, max_length)
    plain, isolated = ir.load(before), ir.load(after)
    tape = isolate(isolated)
    tap = GraphTap(plain)
    for name in tape.recorded():
        tap.give_out(tap.values[name], f"{name}{GIVEN}")
    with ExitStack() as stack:
        sessions = []
        for graph, original, options in ((plain, before, OrtOptions()), (isolated, after, OrtOptions(kernels=True))):
            path = stack.enter_context(saved_beside(graph, original, "tapped"))
            sessions.append(stack.enter_context(closing(OrtSession(open_session(path, options)))))
        reference, kernels = sessions
        for feeds in batches:
            given = reference.run(feeds)
            found = kernels.run(feeds | {f"{name}{GIVEN}": given[f"{name}{GIVEN}"] for name in tape.given})
            for name in tape.compared_names:
                pair = (without_padding(values, feeds) for values in (given[f"{name}{GIVEN}"], found[f"{name}{OWN}"]))
                tape.compare(name, *pair)
    return tape.parity()


def check_bfloat16(before: Path, after: Path, interface: GraphInterface, model: Manifest, *, max_length: int) -> float:
    """How far products in bfloat16 move the outputs: the largest distance of a row, by its length.

    Raises:
        ParityError: it is more than MOST_MOVED.
        EngineError: an engine is not of the interface.
    """
    batches, _ = random_batches(interface, model.model.vocab_size, max_length)
    with (
        closing(OrtSession.open(before, interface)) as exact,
        closing(OrtSession.open(after, interface, OrtOptions(kernels=True))) as rounded,
    ):
        pair = RaggedPair(interface, exact, rounded, (), {}, Bounds(output=MOST_MOVED))
        return max(pair.compare(feeds) for feeds in batches)


def has_same_bits(engine: Path, interface: GraphInterface, model: Manifest, *, max_length: int) -> bool:
    """Whether random rows in one padded batch get the bits that each gets alone, on own kernels.

    What is left to ONNX Runtime, such as an attention that no kernel takes, may depend on the number of rows.

    Raises:
        EngineError: the engine is not of the interface.
    """
    (whole, *single), _ = random_batches(interface, model.model.vocab_size, max_length)
    with closing(OrtSession.open(engine, interface, OrtOptions(kernels=True))) as session:
        together = session.run(whole)
        for index, feeds in enumerate(single):
            for name, alone in session.run(feeds).items():
                among = together[name][index : index + 1]
                if not np.array_equal(among[tuple(slice(size) for size in alone.shape)], alone):
                    return False
    return True
