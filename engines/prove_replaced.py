"""The proof of Piston's own kernels: each gives what the nodes it replaced give, on the activations of real steps.

Both engines run the same prefill and decode steps. Every kernel reads what the engine it was made from computed, so
that one difference does not become another, and all that it gives is compared: floats to the bound of float
arithmetic, codes to one step where a value lies on the edge between two, and the cache that it writes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.kernel_blocks import OPERATORS
from piston.engines.lowering.kernel_linear import KERNELS
from piston.runtime.errors import ParityError
from piston.runtime.manifest import CacheSpec
from piston.runtime.ort_engine import OrtEngine, OrtOptions

# Of a value's size: sums of thousands of terms in another order, and what two bfloat16 leave of a float: 2^-16 of a
# score, which the exponent turns into as much of a weight times the score. 6e-5 was found where scores reach 30.
RELATIVE = 2e-4
# Of products that round activations by blocks, logits among them, by relative L2: each kernel rounds on its own, and a
# value on an edge may fall to either side. Rounding itself is 6e-3 (see prove_kernels.py); a wrong code is far more.
ROUNDED_RELATIVE = 2e-3
LARGEST_SHARE_APART = 1e-2  # codes that fall to the other side of an edge; a wrong scale moves nearly all
PROMPTS = (3, 45, 70)  # tokens of each slot: less than a tile, some tiles, and more
CUT = 37  # of a longer prompt, where its second chunk begins
NUM_STEPS = 3
GIVEN, OWN = ".given", ".own"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ReplacedProof:
    """How far kernels and what they replaced are apart: recorded in the manifest."""

    kernels: int
    values: int  # compared, over all steps
    max_relative: float  # of floats
    codes_apart: float  # the largest share of one tensor's codes


def prove_replaced(before: Path, after: Path, cache: CacheSpec, *, max_length: int) -> ReplacedProof:
    """Compare the engine `after` with `before`, which it was made from, kernel by kernel.

    Raises:
        ParityError: one is beyond its bound; the message names it.
    """
    lengths = [max(1, min(length, max_length - NUM_STEPS)) for length in PROMPTS]
    with _opened(before, after, cache, len(lengths), max(lengths) + NUM_STEPS) as (reference, kernels, tape):
        rng = np.random.default_rng(0)
        for length in lengths:
            slot = reference.cache.admit()
            assert slot == kernels.cache.admit()
            ids = rng.integers(0, reference.vocab_size, length).tolist()
            for chunk in (ids[:CUT], ids[CUT:]):
                if chunk:
                    _lockstep(reference, kernels, partial(_prefill, slot, chunk))
        for _ in range(NUM_STEPS):
            tokens = {slot: int(rng.integers(0, reference.vocab_size)) for slot in range(len(lengths))}
            _lockstep(reference, kernels, partial(_step, tokens))
        return ReplacedProof(len(tape.kernels), tape.compared, tape.max_relative, tape.codes_apart)


def _prefill(slot: int, ids: list[int], engine: OrtEngine) -> Array:
    return engine.prefill(slot, ids)


def _step(tokens: dict[int, int], engine: OrtEngine) -> Array:
    return np.stack(list(engine.step(tokens).values()))


def _lockstep(reference: OrtEngine, kernels: OrtEngine, work: Callable[[OrtEngine], Array]) -> None:
    logits, found = work(reference), work(kernels)
    _check_rounded(logits, found, "the logits")
    for index, (expected, mine) in enumerate(zip(reference.cache.arrays, kernels.cache.arrays, strict=True)):
        for slot, length in enumerate(reference.cache.lengths):
            wanted, written = expected[slot, :, : int(length)], mine[slot, :, : int(length)]
            _check(wanted, written, f"the {'values' if index % 2 else 'keys'} of layer {index // 2}")
            written[:] = wanted


def _check_rounded(expected: Array, found: Array, what: str) -> None:
    relative = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not relative <= ROUNDED_RELATIVE:
        raise ParityError(
            f"Piston's kernel parts from what it replaced at {what}: by {relative:.2g} of its size; allowed are "
            f"{ROUNDED_RELATIVE:.0g}. Nothing was written."
        )


def _check(expected: Array, found: Array, what: str) -> tuple[float, float]:
    """Relative difference of floats, or share of codes apart; raises ParityError."""
    if not expected.size:
        return 0.0, 0.0
    apart = np.abs(expected.astype(np.float32) - found.astype(np.float32))
    if np.issubdtype(expected.dtype, np.integer):
        share = float((apart > 0).mean())
        if not (apart.max() <= 1 and share <= LARGEST_SHARE_APART):
            raise ParityError(
                f"Piston's kernel parts from what it replaced at {what}: {share:.2%} of its codes differ, by up to "
                f"{apart.max():.0f}; allowed are {LARGEST_SHARE_APART:.0%}, by 1. Nothing was written."
            )
        return 0.0, share
    relative = float(apart.max() / max(float(np.abs(expected).max()), 1e-30))
    if not relative <= RELATIVE:
        raise ParityError(
            f"Piston's kernel parts from what it replaced at {what}: by {relative:.2g} of the largest value; allowed "
            f"are {RELATIVE:.0g}. Nothing was written."
        )
    return relative, 0.0


@dataclass
class _Tape:
    """What each run of the reference gave, until the kernels have made the same run."""

    kernels: list[str]
    given: list[str]  # values that kernels read
    compared_names: list[str]  # values that they give
    rounded: set[str]  # those of them that are made of activations rounded by blocks
    runs: list[dict[str, Array]] = field(default_factory=list)
    compared: int = 0
    max_relative: float = 0.0
    codes_apart: float = 0.0


class _Reference(OrtEngine):
    tape: _Tape

    def _run(self, binding: Any) -> None:
        names = list(dict.fromkeys([*self.tape.given, *self.tape.compared_names]))
        for name in names:
            binding.bind_output(f"{name}{GIVEN}", "cpu")
        super()._run(binding)
        found = binding.get_outputs()[-len(names) :]
        self.tape.runs.append({name: value.numpy().copy() for name, value in zip(names, found, strict=True)})


class _Kernels(OrtEngine):
    tape: _Tape

    def _run(self, binding: Any) -> None:
        tape, expected = self.tape, self.tape.runs.pop(0)
        for name in tape.given:
            binding.bind_cpu_input(f"{name}{GIVEN}", expected[name])
        for name in tape.compared_names:
            binding.bind_output(f"{name}{OWN}", "cpu")
        super()._run(binding)
        found = binding.get_outputs()[-len(tape.compared_names) :]
        for name, value in zip(tape.compared_names, found, strict=True):
            tape.compared += expected[name].size
            if name in tape.rounded:
                _check_rounded(expected[name], value.numpy(), name)
                continue
            relative, share = _check(expected[name], value.numpy(), name)
            tape.max_relative, tape.codes_apart = max(tape.max_relative, relative), max(tape.codes_apart, share)


@contextmanager
def _opened(
    before: Path, after: Path, cache: CacheSpec, num_slots: int, capacity: int
) -> Iterator[tuple[OrtEngine, OrtEngine, _Tape]]:
    model, forced = ir.load(before), ir.load(after)
    tape = _isolate(forced)
    _expose(model, list(dict.fromkeys([*tape.given, *tape.compared_names])), GIVEN)
    with ExitStack() as stack:
        paths = before.with_name("exposed.onnx"), after.with_name("isolated.onnx")
        for graph, path in zip((model, forced), paths, strict=True):
            ir.save(graph, path)
            stack.callback(path.unlink)
        options = OrtOptions(), OrtOptions(kernels=True)
        reference = _Reference.open(paths[0], cache, num_slots=num_slots, capacity=capacity, options=options[0])
        stack.callback(reference.close)
        kernels = _Kernels.open(paths[1], cache, num_slots=num_slots, capacity=capacity, options=options[1])
        stack.callback(kernels.close)
        reference.tape = kernels.tape = tape
        yield reference, kernels, tape


def _isolate(model: ir.Model) -> _Tape:
    """Let every kernel read inputs of the graph, and give all that it makes out."""
    kernels = [node for node in model.graph if node.domain == KERNELS]
    inputs = set(model.graph.inputs)
    made = {value: node for node in kernels for value in node.outputs}
    given: dict[str, ir.Value] = {}
    for node in kernels:
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer() or value in inputs or value.name == "seqlens_k":
                continue
            name = str(value.name)
            if name not in given:
                given[name] = ir.Value(name=f"{name}{GIVEN}", type=value.type, shape=value.shape)
            node.replace_input_with(index, given[name])
    model.graph.inputs.extend(given.values())
    compared = [str(value.name) for value in made if value.name and not value.is_graph_output()]
    _expose(model, compared, OWN)
    rounded = {str(value.name) for value, node in made.items() if node.op_type in OPERATORS.values()}
    return _Tape([str(node.name) for node in kernels], list(given), compared, rounded)


def _expose(model: ir.Model, names: list[str], suffix: str) -> None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        source = values[name]
        copy = ir.node("Identity", [source])
        copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = f"{name}{suffix}", source.type, source.shape
        model.graph.insert_after(source.producer(), copy)  # type: ignore[arg-type]
        model.graph.outputs.append(copy.outputs[0])
