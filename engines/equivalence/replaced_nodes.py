"""Parity of Piston's own kernels: each gives what the nodes it replaced give, on the activations of real steps.

Both engines run the same prefill and decode steps. Every kernel reads what the engine it was made from computed, so
that one difference does not become another, and all that it gives is compared: floats to the bound of float
arithmetic, codes to one step where a value lies on the edge between two, and the cache that it writes. Where the cache
is INT8, an attention is compared over the codes that its kernel wrote (see int8_attention.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import ParityError
from piston.engines.equivalence.int8_attention import Int8Attention, int8_attentions
from piston.engines.equivalence.lockstep import random_sources
from piston.engines.equivalence.two_engines import Lockstep
from piston.engines.lowering.kernels.bfloat16 import LINEARS
from piston.engines.lowering.kernels.blocks import ROUNDING
from piston.engines.lowering.kernels.kernel_pass import KERNELS
from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.ort_run import Run, Values
from piston.runtime.backends.session import OrtOptions

# Of a value's size: sums of thousands of terms in another order, and what two bfloat16 leave of a float: 2^-16 of a
# score, which the exponent turns into as much of a weight times the score. 6e-5 was found where scores reach 30.
RELATIVE = 2e-4
# Of products that round activations by blocks, logits among them, by relative L2: each kernel rounds on its own, and a
# value on an edge may fall to either side. Rounding itself is 6e-3 (see packed_products.py); a wrong code is far more.
ROUNDED_RELATIVE = 2e-3
# Of products of bfloat16, likewise: two numbers of 8 bits of mantissa are 2.4e-3 from their product, and where outputs
# are smaller than what they are summed of, or a Gelu cuts them off, that is more of them.
BFLOAT16_RELATIVE = 1e-2
# Codes that fall to the other side of an edge between two. What parts by 2^-16 of the largest parts by 2e-3 of a step
# at 127 steps, and crosses an edge as often where values lie anywhere between two; in a small tensor one or two may
# cross by chance. Single codes were seen, 1 of 1,728 and 1 of 4,608; a wrong scale moves nearly all.
LARGEST_SHARE_APART, FEW_APART = 2e-3, 2
PROMPTS = (3, 45, 70)  # tokens of each slot: less than a tile, some tiles, and more
CUT = 37  # of a longer prompt, where its second chunk begins
NUM_STEPS = 3

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ReplacedParity:
    """How far kernels and what they replaced are apart: recorded in the manifest."""

    kernels: int
    values: int  # compared, over all steps
    max_relative: float  # of floats
    codes_apart: float  # the largest share of one tensor's codes


def check_replaced(
    before: Path, after: Path, cache: CacheSpec, *, max_length: int, cross: CacheSpec | None = None
) -> ReplacedParity:
    """Compare the engine `after` with `before`, which it was made from, kernel by kernel.

    `cross` are the states over a source, of a decoder that has an encoder: random ones.

    Raises:
        ParityError: one is beyond its bound; the message names it.
    """
    lengths = [max(1, min(length, max_length - NUM_STEPS)) for length in PROMPTS]
    with _opened(before, after, cache, len(lengths), max(lengths) + NUM_STEPS, cross) as (lockstep, tape):
        rng, vocab = np.random.default_rng(0), lockstep.first.vocab_size
        for length in lengths:
            slot, other = lockstep.both(lambda engine: engine.cache.admit())
            assert slot == other
            ids = rng.integers(0, vocab, length).tolist()
            for chunk in (ids[:CUT], ids[CUT:]):
                if chunk:
                    _work(lockstep, tape, partial(_prefill, slot, chunk))
        for _ in range(NUM_STEPS):
            tokens = {slot: int(rng.integers(0, vocab)) for slot in range(len(lengths))}
            _work(lockstep, tape, partial(_step, tokens))
        return tape.parity()


def _prefill(slot: int, ids: list[int], engine: OrtEngine) -> Array:
    return engine.prefill(slot, ids)


def _step(tokens: dict[int, int], engine: OrtEngine) -> Array:
    return np.stack(list(engine.step(tokens).values()))


def _work(lockstep: Lockstep, tape: "Tape", work: Callable[[OrtEngine], Array]) -> None:
    logits, found = lockstep.both(work)
    _check_rounded(logits, found, "the logits", ROUNDED_RELATIVE)
    reference, kernels = lockstep.first.cache, lockstep.second.cache
    for index, (expected, mine) in enumerate(zip(reference.arrays, kernels.arrays, strict=True)):
        for slot, length in enumerate(reference.lengths):
            wanted, written = expected[slot, :, : int(length)], mine[slot, :, : int(length)]
            _, share = _check(wanted, written, f"the {'values' if index % 2 else 'keys'} of layer {index // 2}")
            tape.codes_apart = max(tape.codes_apart, share)
            written[:] = wanted


def _check_rounded(expected: Array, found: Array, what: str, bound: float) -> None:
    relative = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not relative <= bound:
        raise ParityError(
            f"Piston's kernel differs from what it replaced at {what}: by {relative:.2g} of its size; allowed are "
            f"{bound:.0g}. Nothing was written."
        )


def _check(expected: Array, found: Array, what: str) -> tuple[float, float]:
    """Relative difference of floats, or share of codes apart; raises ParityError."""
    if not expected.size:
        return 0.0, 0.0
    apart = np.abs(expected.astype(np.float32) - found.astype(np.float32))
    if np.issubdtype(expected.dtype, np.integer):
        share = float((apart > 0).mean())
        allowed = FEW_APART + int(LARGEST_SHARE_APART * apart.size)
        if not (apart.max() <= 1 and (apart > 0).sum() <= allowed):
            raise ParityError(
                f"Piston's kernel differs from what it replaced at {what}: {(apart > 0).sum()} of its {apart.size} "
                f"codes differ, by up to {apart.max():.0f}; allowed are {allowed}, by 1. Nothing was written."
            )
        return 0.0, share
    relative = float(apart.max() / max(float(np.abs(expected).max()), 1e-30))
    if not relative <= RELATIVE:
        raise ParityError(
            f"Piston's kernel differs from what it replaced at {what}: by {relative:.2g} of the largest value; allowed "
            f"are {RELATIVE:.0g}. Nothing was written."
        )
    return relative, 0.0


@dataclass
class Tape:
    """What the kernels take from the reference, what of theirs is compared, and what was found; see Lockstep."""

    kernels: list[str]
    given: list[str]  # values that kernels read
    compared_names: list[str]  # values that they give
    rounded: Mapping[str, float]  # the bounds of those of them that are made of rounded activations
    attentions: dict[str, Int8Attention] = field(default_factory=dict)  # over an INT8 cache, by what they give
    compared: int = 0
    max_relative: float = 0.0
    codes_apart: float = 0.0

    def recorded(self) -> list[str]:
        """What the reference gives out."""
        beside = [name for each in self.attentions.values() for name in (*each.heads, each.lengths, each.result)]
        return list(dict.fromkeys([*self.given, *self.compared_names, *beside]))

    def record(self, run: Run) -> Values:
        """Make the reference's run."""
        return run.fetch(self.recorded(), GIVEN) | self._caches(run)

    def replay(self, run: Run, given: Values) -> None:
        """Make the run of the kernels, and compare."""
        run.inject({name: given[name] for name in self.given}, GIVEN)
        found, caches = run.fetch(self.compared_names, OWN), self._caches(run)
        over = {name: attention.given_over(given, caches) for name, attention in self.attentions.items()}
        expected = given | {name: wanted for name, wanted in over.items() if wanted is not None}
        for name, value in found.items():
            self.compare(name, expected[name], value)

    def compare(self, name: str, expected: Array, found: Array) -> None:
        """Compare one value that a kernel gives; raises ParityError."""
        self.compared += expected.size
        if name in self.rounded:
            _check_rounded(expected, found, name, self.rounded[name])
            return
        relative, share = _check(expected, found, name)
        self.max_relative, self.codes_apart = max(self.max_relative, relative), max(self.codes_apart, share)

    def parity(self) -> ReplacedParity:
        """What was found."""
        return ReplacedParity(len(self.kernels), self.compared, self.max_relative, self.codes_apart)

    def _caches(self, run: Run) -> Values:
        return run.states() if run.cache.spec.dtype == "int8" else {}


@contextmanager
def _opened(
    before: Path, after: Path, cache: CacheSpec, num_slots: int, capacity: int, cross: CacheSpec | None = None
) -> Iterator[tuple[Lockstep, Tape]]:
    model, isolated = ir.load(before), ir.load(after)
    tape = isolate(isolated)
    attentions = int8_attentions(model)
    tape.attentions = {name: attentions[name] for name in tape.compared_names if name in attentions}
    tap = GraphTap(model)
    for name in tape.recorded():
        tap.give_out(tap.values[name], f"{name}{GIVEN}")
    with ExitStack() as stack:
        engines = list[OrtEngine]()
        for graph, original, options in ((model, before, OrtOptions()), (isolated, after, OrtOptions(kernels=True))):
            path = stack.enter_context(saved_beside(graph, original, "tapped"))
            size = {"num_slots": num_slots, "capacity": capacity}
            engine = OrtEngine.open(path, cache, **size, options=options, cross=random_sources(cross, num_slots))
            engines.append(stack.enter_context(closing(engine)))
        first, second = engines
        yield Lockstep(first, second, tape.record, tape.replay), tape


def isolate(model: ir.Model) -> Tape:
    """Let every kernel read inputs of the graph, and every other node that reads a kernel; give all that they make out.

    A node that was not replaced would else make much of a code that fell to the other side of an edge.
    """
    kernels = [node for node in model.graph if node.domain == KERNELS]
    inputs, tap = set(model.graph.inputs), GraphTap(model)
    made = {value: node for node in kernels for value in node.outputs}
    for node in kernels:
        for index, value in enumerate(node.inputs):
            if not (value is None or value.is_initializer() or value in inputs or value.name == "seqlens_k"):
                tap.inject(value, str(value.name), [(node, index)])
    for value in made:
        if value.uses():
            tap.inject(value, str(value.name))
    compared = [value for value in made if value.name and not value.is_graph_output()]
    for value in compared:
        tap.give_out(value, f"{value.name}{OWN}")
    bounds = dict.fromkeys(ROUNDING, ROUNDED_RELATIVE) | dict.fromkeys(LINEARS, BFLOAT16_RELATIVE)
    rounded = {str(value.name): bounds[node.op_type] for value, node in made.items() if node.op_type in bounds}
    names = [str(value.name) for value in compared]
    return Tape([str(node.name) for node in kernels], list(tap.injected), names, rounded)
