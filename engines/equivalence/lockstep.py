"""Two graphs in lockstep on ONNX Runtime: the canonical one, and one that must answer as it does.

Both run through the engine that the runtime uses, side by side: prefill in two chunks on several slots, then decode
steps of all slots at their different lengths, of some and of single ones, in place. Tokens are the canonical graph's
greedy ones, so that one difference does not become another; for the same reason they share the activations that are
rounded to codes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import ParityError
from piston.engines.equivalence.activation_injection import Tape, check_known, injectable
from piston.engines.equivalence.int8_cache_lockstep import ATTENTION, CacheTape, recordable, steerable
from piston.engines.equivalence.reference_options import reference_options
from piston.engines.equivalence.two_engines import Lockstep, T
from piston.graph.qdq import remainders
from piston.graph.tap import GIVEN, without_ending
from piston.runtime.backends.cross_states import CrossStates
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions

ABSOLUTE, RELATIVE = 1e-3, 1e-4  # float32: the larger of the two, RELATIVE times the largest logit
# Each code of an INT8 cache is the nearest to what the canonical graph rounds, or, where that lies on the edge between
# two as far as float arithmetic can tell, the other one: so many steps away at most.
NEAREST = 0.52
CODES = -128, 127
# Without packed copies of the weights ONNX Runtime keeps less memory, and multiplies MatMulNBits in float32 (1.32).
PLAIN = OrtOptions(prepack=False)
PROMPT_LENGTHS = (3, 8, 21)
NUM_STEPS = 8
PAST_WINDOW = 9  # how far the longest prompt goes beyond a window
LARGEST_WINDOW = 1024  # longer windows are not filled: their prompt would take minutes
SOURCE_STEP = 13  # positions by which the source of a slot is longer than that of the one before
KEPT = 16  # positions of a chunk whose logits are compared

Array = NDArray[np.float32]


def compare(  # noqa: PLR0913 - two graphs, and what they are run on
    canonical: Path,
    lowered: Path,
    cache: CacheSpec,
    *,
    max_length: int,
    windows: Sequence[int] = (),
    slack: float = 1.0,
    cross: CacheSpec | None = None,
) -> "Pair":
    """Run both along the canonical graph's greedy tokens, with bounds `slack` times as wide; raises as `prove` does.

    `cross` are the states over a source, of a decoder that has an encoder: random ones, of another length in each slot.
    """
    steps = min(NUM_STEPS, max_length - 1)
    wanted = [*PROMPT_LENGTHS, *(window + PAST_WINDOW for window in windows if window <= LARGEST_WINDOW)]
    lengths = sorted({max(1, min(length, max_length - steps)) for length in wanted})
    with _opened(canonical, lowered, cache, len(lengths), lengths[-1] + steps, cross) as pair:
        pair.slack = slack
        rng = np.random.default_rng(0)
        vocab = pair.canonical.vocab_size
        tokens = {slot: pair.prefill(rng.integers(0, vocab, length).tolist()) for slot, length in enumerate(lengths)}
        for step in range(1, steps + 1):
            for group in _groups(list(tokens), steps - step):
                tokens |= pair.step({slot: tokens[slot] for slot in group}, step)
        pair.steps, pair.prompt_lengths = steps, lengths
        return pair


def _groups(slots: list[int], steps_left: int) -> list[list[int]]:
    """Which slots step together: all; last but one the outermost, with idle rows between; at last each alone."""
    if steps_left == 0:
        return [[slot] for slot in slots]
    if steps_left == 1:
        outer = {slots[0], slots[-1]}
        return [group for group in (sorted(outer), [slot for slot in slots if slot not in outer]) if group]
    return [slots]


@contextmanager
def _opened(
    canonical: Path, lowered: Path, cache: CacheSpec, num_slots: int, capacity: int, cross: CacheSpec | None
) -> Iterator["Pair"]:
    wide, graph = cache.with_dtype("float32"), ir.load(canonical).graph
    twice, size = remainders(graph), {"num_slots": num_slots, "capacity": capacity}
    with ExitStack() as stack:
        if cache.dtype == "int8":
            path, names, has_nbits = stack.enter_context(recordable(lowered))
            given, scales = stack.enter_context(steerable(canonical, names))
            tape: Tape = CacheTape(names, twice, scales=scales)
        else:
            path, names, has_nbits = stack.enter_context(injectable(lowered))
            check_known(names, without_ending([value.name for value in graph.outputs], GIVEN))
            given, scales, tape = canonical, {}, Tape(names, twice)
        options = PLAIN if has_nbits else OrtOptions()
        reference, engine = (
            stack.enter_context(
                closing(OrtEngine.open(file, spec, **size, options=how, cross=random_sources(cross, num_slots)))
            )
            for file, spec, how in ((given, wide, reference_options(graph)), (path, cache, options))
        )
        first, second = (engine, reference) if scales else (reference, engine)
        yield Pair(reference, engine, Lockstep(first, second, tape.record, tape.replay), tape, list(scales.values()))


def random_sources(cross: CacheSpec | None, num_slots: int) -> CrossStates | None:
    """Seeded cross states in float32 of sources of different lengths; None for a decoder without an encoder."""
    if cross is None or not cross.states:
        return None
    rng, wide = np.random.default_rng(2), cross.with_dtype("float32")
    fixed = wide.num_positions
    states = CrossStates(wide, num_slots, fixed or SOURCE_STEP * num_slots + 1)
    for slot in range(num_slots):
        length = states.capacity if fixed else SOURCE_STEP * slot + 1
        arrays = [rng.normal(size=state.sizes(1, length)).astype(np.float32) for state in wide.states]
        states.write(slot, arrays, length, slot, range(slot))
    return states


@dataclass(slots=True)
class Pair:
    """The two engines in lockstep, and what has been seen of their difference."""

    canonical: OrtEngine
    lowered: OrtEngine
    lockstep: Lockstep
    tape: Tape
    scales: list[Array]  # of an INT8 cache: what one code is worth, [1, kv_heads, 1, head_dim] or a scalar
    max_abs: float = 0.0
    bound: float = ABSOLUTE
    slack: float = 1.0
    worst: float = 0.0  # the largest difference, of logits or activations, over the bound that it has without slack
    compared: int = 0
    code_distance: float = 0.0  # steps
    steps: int = 0
    prompt_lengths: list[int] = field(default_factory=list)

    def prefill(self, prompt: list[int]) -> int:
        """Run a prompt in two chunks on a new slot; the greedy next token."""
        slot = self.canonical.cache.admit()
        assert slot == self.lowered.cache.admit()
        cut = len(prompt) // 3
        for chunk in (prompt[:cut], prompt[cut:]):
            if chunk:
                kept = min(len(chunk), KEPT)
                expected, actual = self._both(partial(_prefill, slot, chunk, kept))
                self._compare(expected, actual, f"prefill of {len(prompt)} tokens")
        return int(expected[-1].argmax())

    def step(self, tokens: dict[int, int], step: int) -> dict[int, int]:
        """Append one token to each slot; the greedy next ones."""
        expected, actual = self._both(lambda engine: engine.step(tokens))
        for slot in tokens:
            self._compare(expected[slot][None], actual[slot][None], f"decode step {step} of slot {slot}")
        return {slot: int(logits.argmax()) for slot, logits in expected.items()}

    def _both(self, work: Callable[[OrtEngine], T]) -> tuple[T, T]:
        """What the canonical and the lowered engine make of the same; the one that gives runs first."""
        first, second = self.lockstep.both(work)
        return (second, first) if self.scales else (first, second)

    def _compare(self, expected: Array, actual: Array, where: str) -> None:
        self._compare_codes(where)
        self._compare_activations(where)
        self.bound = max(self.bound, RELATIVE * float(np.abs(expected).max()))
        difference = float(np.abs(expected - actual).max())
        same = expected.argmax(axis=-1) == actual.argmax(axis=-1)
        if self._is_beyond(difference, self.bound):
            raise ParityError(
                f"The lowered graph differs from the canonical one at the {where}: logits differ by {difference:.3g}, "
                f"allowed are {self.bound * self.slack:.3g}. {self._blame()} Nothing was written."
            )
        if not same.all() and _margin(expected[~same]) > self.bound * self.slack:
            raise ParityError(
                f"The lowered graph picks another greedy token than the canonical one at the {where}, though logits "
                f"differ by {difference:.3g} only. {self._blame()} Nothing was written."
            )
        self.max_abs = max(self.max_abs, difference)
        self.compared += len(expected)

    def _is_beyond(self, difference: float, bound: float) -> bool:
        self.worst = max(self.worst, difference / bound)
        return not difference <= bound * self.slack  # NaN is beyond

    def _compare_activations(self, where: str) -> None:
        for name, (difference, largest) in self.tape.apart.items():
            bound = max(ABSOLUTE, RELATIVE * largest)
            if self._is_beyond(difference, bound):
                what = f"before it is rounded to {name}, an activation"
                look = "what makes it from the codes before it"
                if (layer := name.removeprefix(ATTENTION)) != name:
                    what, look = f"the result of layer {layer}'s attention", "its query, scale and window"
                raise ParityError(
                    f"The lowered graph differs from the canonical one at the {where}: {what} differs by "
                    f"{difference:.3g}, allowed are {bound * self.slack:.3g}. Look at {look}. Nothing was written."
                )
        self.tape.apart.clear()

    def _compare_codes(self, where: str) -> None:
        """Check the codes of an INT8 cache: each is one that the canonical graph's key or value is rounded to."""
        for index, scale in enumerate(self.scales):
            exact, codes = self.canonical.cache.arrays[index], self.lowered.cache.arrays[index]
            for slot, length in enumerate(self.canonical.cache.lengths):
                unrounded = (exact[slot : slot + 1, :, : int(length)] / scale).clip(*CODES)
                apart = float(np.abs(unrounded - codes[slot, :, : int(length)]).max(initial=0))
                self.code_distance = max(self.code_distance, apart)
                if not apart <= NEAREST:
                    raise ParityError(
                        f"The lowered graph's cache differs from the canonical one at the {where}: a code of "
                        f"{self.canonical.cache.spec.states[index].output} is {apart:.3g} steps from what it stands "
                        f"for, allowed are {NEAREST}. Look at its projections, rotary and scales. Nothing was written."
                    )

    def _blame(self) -> str:
        if self.scales:
            return "All attentions and codes of the cache agree: look at lm_head and the last layer."
        return self._blame_layer()

    def _blame_layer(self) -> str:
        """Name the first layer whose cache differs: a layer's keys and values show what the layers before it did."""
        states = self.canonical.cache.spec.states
        for index, state in enumerate(states):
            off, layer = self._cache_difference(index), state.layer
            if not off <= ABSOLUTE:
                suspect = f"layer {layer - 1}'s attention or MLP" if layer else "layer 0's projections or rotary"
                return f"{state.output} is the first state to differ (by {off:.2g} of the largest): look at {suspect}."
        return f"All caches agree: look at layer {states[-1].layer}'s attention or MLP, the final norm and lm_head."

    def _cache_difference(self, index: int) -> float:
        worst = 0.0
        for slot, length in enumerate(self.canonical.cache.lengths):
            expected, actual = (
                engine.cache.arrays[index][slot, :, : int(length)] for engine in (self.canonical, self.lowered)
            )
            if expected.size:
                worst = max(worst, float(np.abs(expected - actual).max() / max(np.abs(expected).max(), 1e-30)))
        return worst


def _prefill(slot: int, token_ids: list[int], kept: int, engine: OrtEngine) -> Array:
    return engine.prefill(slot, token_ids, kept)


def _margin(logits: Array) -> float:
    """By how much the best token leads the second best, where it leads most."""
    best = np.partition(logits, -2, axis=-1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).max())
