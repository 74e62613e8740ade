"""The parity of an encoder's file without a GPU: on the same ragged batches it gives what the canonical graph gives.

As for decoders (answers.py) there are two files: the float32 reference, held end to end to the bound of float32
arithmetic, and the file that the compiler gets, held layer by layer to a few roundings of its type.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle.interface import GraphInterface
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import check_known, injectable
from piston.engines.equivalence.ragged import FLOAT32, Bounds, Feeds, RaggedPair, inner_session, random_batches
from piston.engines.equivalence.reference_options import reference_options
from piston.engines.tensorrt.equivalence.locate import check_range, exposed, first_to_differ
from piston.engines.tensorrt.equivalence.lockstep import in_lockstep, stream_names
from piston.graph.qdq import remainders
from piston.graph.tap import GIVEN, without_ending
from piston.runtime.backends.session import OrtOptions

LONGEST = 512  # tokens of one row that is run alone: positions and windows beyond those of the short rows
# Layer by layer, by a few dozen roundings to 11 or 8 bits.
BOUNDS = {
    "float32": FLOAT32,
    "float16": Bounds(relative=1.5e-2, output=1.5e-2),
    "bfloat16": Bounds(relative=0.1, output=0.1),
}
PLAIN = OrtOptions(prepack=False)


@dataclass(frozen=True, slots=True)
class BatchParity:
    """How far a file is from the canonical graph: recorded in the manifest."""

    dtype: str
    relative: float  # the largest distance of an output row, to its length
    bound: float
    rows: int
    shortest: int
    longest: int
    activations: int  # that are rounded to codes, compared in every run and then shared
    layers: int  # whose results were compared in every run and then shared


def check_batches(
    canonical: Path, lowered: Path, interface: GraphInterface, dtype: str, *, vocab_size: int, max_length: int
) -> BatchParity:
    """Compare `lowered`, in `dtype`, with the float32 graph at `canonical`, which `write_exposed` wrote.

    ONNX Runtime executes both: attentions for TensorRT have their functions (attention_function.py).

    Raises:
        Float16RangeError: `dtype` is float16, and the model's values go beyond it.
        ParityError: beyond the bound; the message names the node.
    """
    batches, sizes = random_batches(interface, vocab_size, max_length, longest=LONGEST)
    with _opened(canonical, lowered, interface, dtype) as (pair, found, paths):
        worst = 0.0
        for feeds in batches:
            try:
                worst = max(worst, pair.compare(feeds))
            except ParityError as problem:
                if type(problem) is not ParityError:  # what is beyond float16 is named already
                    raise
                place = _first_to_differ(pair, paths, feeds)
                raise ParityError(f"In {dtype}: {str(problem).removesuffix(' Nothing was written.')} {place}") from None
    return replace(
        found, relative=worst, rows=len(sizes), shortest=min(sizes), longest=max(sizes), bound=pair.bounds.output
    )


@contextmanager
def _opened(
    canonical: Path, lowered: Path, interface: GraphInterface, dtype: str
) -> Iterator[tuple[RaggedPair, BatchParity, tuple[Path, Path]]]:
    with ExitStack() as stack:
        path, codes, _ = stack.enter_context(injectable(lowered))
        streams = [] if dtype == "float32" else stream_names(lowered)
        path = stack.enter_context(in_lockstep(path, streams))
        opened, narrow = canonical, dict[str, str]()
        if dtype == "float16":
            opened, narrow = stack.enter_context(exposed(canonical, lowered))
        graph = ir.load(canonical).graph
        options = reference_options(graph)
        reference = stack.enter_context(closing(inner_session(opened, options)))
        candidate = stack.enter_context(closing(inner_session(path, options)))
        names = [*codes, *streams]
        types = {
            str(value.name): value.dtype.numpy() for value in ir.load(path).graph.inputs if value.dtype is not None
        }
        check_known(names, without_ending([value.name for value in graph.outputs], GIVEN))

        def look(feeds: Feeds, expected: dict[str, Any]) -> None:
            longest = max((size for array in feeds.values() for size in array.shape[1:]), default=0)
            check_range(narrow, expected, f"On a row of {longest} tokens")

        pair = RaggedPair(interface, reference, candidate, names, remainders(graph), BOUNDS[dtype], types, look)
        yield pair, BatchParity(dtype, 0, 0, 0, 0, 0, len(codes), len(streams)), (canonical, path)


def _first_to_differ(pair: RaggedPair, paths: tuple[Path, Path], feeds: Feeds) -> str:
    """The node, in a sentence; both graphs are given the same activations, as in the comparison."""
    expected = pair.reference.run(feeds)
    given = feeds | pair.given(expected)

    def run(path: Path) -> dict[str, Any]:
        with closing(inner_session(path, PLAIN)) as session:
            return session.run(given)

    canonical, lowered = ((path, run) for path in paths)
    return f"{first_to_differ(canonical, lowered, pair.bounds.relative)} Nothing was written."
