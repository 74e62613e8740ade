"""The parity without a GPU: the file the compiler gets answers as the canonical graph does.

Two files are lowered by the same passes: the engine's own, in float16 or bfloat16, and its float32 reference, in which
an error cannot hide behind rounding. The reference is held to the bound of float32 arithmetic, or to what that does to
the canonical graph itself (engines/equivalence/rounding_noise.py); that the engine's file differs from it in casts
alone is checked node by node; and the file itself, executed with TRT_Attention as a function, is held to what its type
allows, layer by layer. Activations that become codes are shared (engines/equivalence/activation_injection.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import check_known, injectable, largest_of
from piston.engines.equivalence.reference_options import reference_options
from piston.engines.equivalence.rounding_noise import slack_of, within_noise
from piston.engines.tensorrt.equivalence.attention_function import write_executable
from piston.engines.tensorrt.equivalence.locate import check_range, exposed, first_to_differ
from piston.engines.tensorrt.equivalence.lockstep import in_lockstep, stream_names
from piston.engines.tensorrt.equivalence.sampling import Draw
from piston.engines.tensorrt.equivalence.step_session import GARBAGE, StepSession
from piston.engines.tensorrt.lowering import MAX_TOP_K, Sizes
from piston.graph.qdq import Remainder, remainders
from piston.graph.tap import GIVEN, OWN, without_ending

ROWS, STEPS = 3, 6
PROMPT, CHUNKS, RAGGED, PADDED = 3, (5, 9), (4, 2, 3), 4
PAST_WINDOW, LARGEST_WINDOW = 9, 1024  # the longest prompt goes beyond a window; longer windows are not filled
ABSOLUTE = 1e-3
# Of the largest value. float32 differs in the order of sums alone; the others, layer by layer, by a few dozen roundings
# to 11 or 8 bits.
RELATIVE = {"float32": 1e-4, "float16": 1.5e-2, "bfloat16": 0.1}

Array = NDArray[Any]


@dataclass(slots=True)
class Parity:
    """How far a file is from the canonical graph: recorded in the manifest."""

    dtype: str
    max_abs: float = 0.0
    bound: float = ABSOLUTE
    relative: float = 0.0  # to the largest logit of the row
    steps: int = 0
    compared: int = 0  # rows of logits
    tokens: int = 0  # chosen by the graph, checked against the runtime's arithmetic
    activations: int = 0  # that are rounded to codes, compared in every step and then shared
    layers: int = 0  # whose results were compared in every step and then shared
    positions: list[int] = field(default_factory=list)  # at which single tokens were decoded
    slack: float = 1.0  # by how much the bound was widened for the canonical graph's own noise


def check_parity(  # noqa: PLR0913
    canonical: Path,
    lowered: Path,
    cache: CacheSpec,
    sizes: Sizes,
    dtype: str,
    *,
    window: int = 0,
    cross: CacheSpec | None = None,
) -> Parity:
    """Compare `lowered`, in `dtype`, with the float32 graph at `canonical`, which `write_exposed` wrote.

    `cache` and `cross` are the canonical graph's; `window` is the longest of its sliding windows.

    Prefill, prefill in chunks, a ragged batch, decode steps of all rows and of one, and at the last positions.

    Raises:
        Float16RangeError: `dtype` is float16, and the model's values go beyond it.
        ParityError: beyond the bound, another token, or another next step; the message names the node.
    """
    if dtype != "float32":
        return _run(canonical, lowered, cache, sizes, Parity(dtype), window, cross)
    windows = (window,) if window else ()
    parity, _ = within_noise(
        lambda slack: _run(canonical, lowered, cache, sizes, Parity(dtype, slack=slack), window, cross),
        lambda: slack_of(
            canonical, cache, max_length=sizes.max_length, windows=windows, work=canonical.parent, cross=cross
        ),
    )
    return parity


def _run(  # noqa: PLR0913, PLR0917
    canonical: Path,
    lowered: Path,
    cache: CacheSpec,
    sizes: Sizes,
    parity: Parity,
    window: int,
    cross: CacheSpec | None,
) -> Parity:
    with _opened(canonical, lowered, cache, sizes, parity) as pair:
        pair.sources = {} if cross is None else _random_sources(cross, sizes)
        rng, last = np.random.default_rng(0), sizes.max_length
        longest = max(1, last - STEPS - PADDED)
        pair.prefill(0, [min(PROMPT, longest)], rng)
        reach = window + PAST_WINDOW if 0 < window <= LARGEST_WINDOW else 0
        chunks = (CHUNKS[0], max(CHUNKS[1], reach - CHUNKS[0]))
        pair.prefill(1, list(chunks) if sum(chunks) <= longest else [longest], rng)
        if last > sum(chunks) + PADDED:
            pair.ragged(rng)
        for _ in range(min(STEPS, last - int(pair.lengths.max()))):
            pair.decode(0, ROWS, rng)
        pair.jump([last - 1, max(last // 2, 1) - 1, 0], rng)
        pair.decode(0, ROWS, rng)
        pair.jump([1, last - 1, min(7, last - 1)], rng)
        pair.decode(1, 2, rng)
        pair.decode(0, 1, rng)
        pair.decode(2, 3, rng)
        return pair.parity


@contextmanager
def _opened(canonical: Path, lowered: Path, cache: CacheSpec, sizes: Sizes, parity: Parity) -> Iterator["_Pair"]:
    executable = write_executable(lowered, lowered.with_name("executable.onnx"))
    with ExitStack() as stack:
        stack.callback(executable.unlink)
        path, codes, _ = stack.enter_context(injectable(executable))
        streams = [] if parity.dtype == "float32" else stream_names(executable)
        path, names = stack.enter_context(in_lockstep(path, streams)), [*codes, *streams]
        opened, narrow = canonical, dict[str, str]()
        if parity.dtype == "float16":
            opened, narrow = stack.enter_context(exposed(canonical, lowered))
        graph = ir.load(canonical).graph
        options, twice = reference_options(graph), remainders(graph)
        reference = StepSession(opened, cache, ROWS, sizes.capacity, options)
        engine = StepSession(path, cache, ROWS, sizes.capacity, options)
        check_known(names, without_ending(reference.outputs, GIVEN))
        parity.activations, parity.layers = len(codes), len(streams)
        yield _Pair(canonical, path, reference, engine, sizes, names, narrow, twice, parity)


@dataclass(slots=True)
class _Pair:
    """Both graphs in lockstep on the same rows."""

    canonical: Path
    lowered: Path
    reference: StepSession
    engine: StepSession
    sizes: Sizes
    names: list[str]  # of codes and of layers' results
    narrow: Mapping[str, str]  # values that the engine keeps in float16, and the nodes that they are of
    remainders: Mapping[str, Remainder]  # by the names of their codes
    parity: Parity
    sources: dict[str, Array] = field(default_factory=dict)  # cross states and lengths of ROWS sources
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(ROWS, np.int64))
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(ROWS, np.int64))

    def prefill(self, slot: int, chunks: list[int], rng: np.random.Generator) -> None:
        """A prompt of random tokens on one row, in chunks; logits of the first, a middle and the last token."""
        for size in chunks:
            ids = rng.integers(0, self.reference.vocab_size, (1, size))
            kept = np.unique([0, size // 2, size - 1])[None]
            start = int(self.lengths[slot])
            self._step(ids, slot, kept, rng, f"prefill of {size} tokens at position {start}")
            self.lengths[slot] += size

    def ragged(self, rng: np.random.Generator) -> None:
        """Rows of different lengths get different numbers of tokens, padded on the right."""
        ids = rng.integers(0, self.reference.vocab_size, (ROWS, PADDED))
        kept = np.array([[0, count - 1] for count in RAGGED])
        self._step(ids, 0, kept, rng, f"ragged batch of {', '.join(map(str, RAGGED))} tokens")
        self.lengths += RAGGED

    def decode(self, low: int, high: int, rng: np.random.Generator) -> None:
        """One token for each row, the canonical graph's likeliest."""
        at = self.lengths[low:high].tolist()
        where = f"decode step at position {', '.join(map(str, at))}"
        self._step(self.tokens[low:high, None], low, np.zeros((high - low, 1), np.int64), rng, where)
        self.lengths[low:high] += 1
        self.parity.positions += at

    def jump(self, lengths: list[int], rng: np.random.Generator) -> None:
        """Pretend that rows hold `lengths` positions: keys and values that the model computed itself, in random order.

        Numbers out of nowhere would be a state that no model was trained for: SmolLM2 in w4 magnifies the last bits of
        float32 a hundredfold there.
        """
        row = int(self.lengths.argmax())
        for (_, cache), (_, other) in zip(self.reference.caches, self.engine.caches, strict=True):
            chosen = rng.integers(0, int(self.lengths[row]), (len(cache), cache.shape[2]))
            filled = np.stack([cache[row][:, places] for places in chosen]).astype(np.float16)  # exact in both
            cache[:], other[:] = filled, filled
        self.lengths[:] = lengths

    def _step(self, ids: Array, low: int, kept: Array, rng: np.random.Generator, where: str) -> None:
        batch, seq = ids.shape
        high, lengths = low + batch, self.lengths[low : low + batch]
        # Padding may run past the last position: it is given the last one there is.
        positions = np.minimum(lengths[:, None] + np.arange(seq), self.sizes.max_length - 1)
        draw = Draw.random(rng, batch, self.sizes.capacity, min(MAX_TOP_K, self.reference.vocab_size))
        feed = {
            "input_ids": ids,
            "position_ids": positions,
            "write_indices": lengths,
            "kv_lengths": lengths + seq,
            "logits_positions": kept,
            **draw.inputs(),
            **{name: array[low:high] for name, array in self.sources.items()},
        }
        expected = self.reference.run(feed, low, high)
        check_range(self.narrow, expected, f"At the {where}")
        forced = {**feed, **{f"{name}{GIVEN}": expected[f"{name}{GIVEN}"] for name in self.names}}
        actual = self.engine.run(forced, low, high)
        blame = _Blame(self, forced, low, high, where)
        self._compare_activations(expected, actual, blame)
        self._compare_logits(expected["logits"], actual["logits"], blame)
        self._compare_next(np.take_along_axis(positions, kept, 1), actual, draw, blame)
        self.tokens[low:high] = expected["logits"][:, -1].argmax(axis=-1)
        self.parity.steps += 1

    def _compare_activations(self, expected: dict[str, Array], actual: dict[str, Array], blame: "_Blame") -> None:
        given = {name: expected[f"{name}{GIVEN}"] for name in self.names}
        for name in self.names:
            difference = float(np.abs(given[name] - actual[f"{name}{OWN}"].astype(np.float32)).max())
            bound = self._bound(largest_of(name, given, self.remainders)) + self._step_of(name)
            if not difference <= bound:
                blame.fail(f"what becomes {name} differs by {difference:.3g}", bound)

    def _compare_logits(self, expected: Array, actual: Array, blame: "_Blame") -> None:
        parity = self.parity
        bound = self._bound(float(np.abs(expected).max(initial=0)))
        difference = float(np.abs(expected - actual).max())
        if not difference <= bound:
            blame.fail(f"logits differ by {difference:.3g}", bound)
        best = np.partition(expected, -2, axis=-1)[..., -2:]
        sure = best[..., 1] - best[..., 0] > 2 * bound
        if (expected.argmax(axis=-1) != actual.argmax(axis=-1))[sure].any():
            blame.fail("another greedy token", bound)
        parity.max_abs, parity.bound = max(parity.max_abs, difference), max(parity.bound, bound)
        parity.relative = max(parity.relative, difference / max(float(np.abs(expected).max()), 1e-30))
        parity.compared += expected.shape[0] * expected.shape[1]

    def _compare_next(self, positions: Array, actual: dict[str, Array], draw: Draw, blame: "_Blame") -> None:
        later = np.minimum(positions + 1, self.sizes.max_length - 1)
        wanted = {
            "next.position_ids": later,
            "next.write_indices": later[:, -1],
            "next.kv_lengths": later[:, -1] + 1,
        }
        for name, value in wanted.items():
            if not np.array_equal(actual[name], value):
                blame.fail(f"{name} is {actual[name].tolist()}, not {value.tolist()}")
        for row, place in np.ndindex(positions.shape):
            token, at = int(actual["next.input_ids"][row, place]), int(positions[row, place])
            if not draw.is_right(actual["logits"][row, place], row, at, token):
                blame.fail(f"next.input_ids holds {token}, which its logits and options do not give")
            self.parity.tokens += 1

    def _step_of(self, name: str) -> float:
        """Where a value of fewer bits falls to the other side of an edge, its remainder has what the code lost."""
        is_narrow = name in self.remainders and self.parity.dtype != "float32"
        return self.remainders[name].step if is_narrow else 0.0

    def _bound(self, largest: float) -> float:
        return max(ABSOLUTE, RELATIVE[self.parity.dtype] * largest) * self.parity.slack


def _random_sources(cross: CacheSpec, sizes: Sizes) -> dict[str, Array]:
    """Keys and values of sources of different lengths, exact in float16, with garbage behind them."""
    if not cross.states:
        return {}
    rng, lengths = np.random.default_rng(2), np.array([max(1, sizes.max_length // 2), 1, sizes.max_length])
    is_ragged = cross.num_positions is None
    found: dict[str, Array] = {"source_lengths": lengths} if is_ragged else {}
    for state in cross.states:
        array = rng.normal(size=state.sizes(ROWS, sizes.source)).astype(np.float16).astype(np.float32)
        for row, length in enumerate(lengths if is_ragged else ()):
            array[row, :, length:] = GARBAGE
        found[state.input] = array
    return found


@dataclass(frozen=True, slots=True)
class _Blame:
    """A step that went wrong, and how to look into it."""

    pair: _Pair
    feed: dict[str, Array]
    low: int
    high: int
    where: str

    def fail(self, what: str, bound: float | None = None) -> None:
        """Raise ParityError with the first node that answers otherwise."""
        pair = self.pair
        sides = ((pair.canonical, pair.reference), (pair.lowered, pair.engine))
        canonical, lowered = (
            (path, lambda wide, session=session: session.reopened(wide).run(self.feed, self.low, self.high))
            for path, session in sides
        )
        place = first_to_differ(canonical, lowered, RELATIVE[pair.parity.dtype])
        allowed = "" if bound is None else f", allowed are {bound:.3g}"
        raise ParityError(
            f"The {pair.parity.dtype} graph for TensorRT differs from the canonical one at the {self.where}: "
            f"{what}{allowed}. {place} Nothing was written."
        )
