"""Profiles a step: ONNX Runtime's own profile, summed by operator and compared with the machine's limits."""

import gc
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from piston.bench.limits import Limits, measure_limits
from piston.bench.workload import Work
from piston.core.console import Progress
from piston.core.errors import EngineError, MisuseError
from piston.runtime.backends.registry import family_of, open_engine, select_engine
from piston.runtime.bundle import Bundle
from piston.runtime.memory_budget import sizes_for

_STEPS = 32  # decode steps; the first ones are not counted
_WARM = 4
_FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
# Operators that multiply by a constant in INT8 or INT4: the inner length is the last of their first input's shape.
_INTEGER_PRODUCTS = (
    *("MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul"),
    *("IntegerLinear", "GatedLinear", "GatedLinearCodes", "BlockLinear", "GatedBlockLinear", "SplitBlockLinear"),
    "SplitGatedBlockLinear",  # Piston's own kernels
)

_FLOAT_BITS = 32


class Node(NamedTuple):
    """One execution of one node."""

    op: str
    seconds: float
    num_bytes: int  # of weights, inputs and outputs
    num_ops: float  # multiplications and additions of products; 0 for other operators


class SessionRun(NamedTuple):
    """One run of a session: when it began (microseconds), how long it took, and its nodes."""

    start: float
    seconds: float
    nodes: list[Node]


BitsOf = Callable[[str, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """All nodes of one type in one step."""

    op: str
    calls: float
    seconds: float
    num_bytes: float
    num_ops: float
    limit: float  # lower bound in seconds from the machine's limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A step by operator, the longest first; `seconds` is the whole step, including time between nodes."""

    name: str
    num_tokens: int
    seconds: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Prefill and decode of one setting, and the limits they are compared with."""

    limits: Limits
    phases: tuple[Phase, ...]


def profile(bundle: Bundle, target: str | None, work: Work, threads: int, progress: Progress) -> Profile:
    """Run one prompt and some decode steps under ONNX Runtime's profiler.

    Raises:
        MisuseError: the engine is not one of ONNX Runtime on the CPU, or has fewer positions.
        EngineError: it fails, or leaves no profile.
    """
    spec, _ = select_engine(bundle, target)
    if family_of(spec.target) != "ort-cpu":
        raise MisuseError(
            f"--profile needs an engine of ONNX Runtime on the CPU, not {spec.target}; choose one with --target."
        )
    rows = [[int(token_id) for token_id in row] for row in work.rows(0)]
    capacity = len(rows[0]) + _STEPS + 1
    asked, _ = sizes_for(bundle.manifest, spec, max_batch=len(rows), max_length=capacity, threads=threads)
    with progress.phase("measuring the machine's limits"):
        limits = measure_limits(threads)
    with tempfile.TemporaryDirectory() as folder, progress.phase("profiling"):
        prefix = str(Path(folder) / "profile")
        engine = open_engine(bundle, spec, replace(asked, profile=prefix))
        try:
            slots = [engine.cache.admit() for _ in rows]
            for slot, row in zip(slots, rows, strict=True):
                engine.prefill(slot, row)
            for step in range(_STEPS):
                engine.step(dict.fromkeys(slots, rows[0][step % len(rows[0])]))
        finally:
            engine.close()
        del engine
        gc.collect()  # a session writes its profile when it is freed
        events = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("profile*"))]
    if not events:
        raise EngineError("ONNX Runtime left no profile; is the disk of the temporary directory full?")
    bits_of = _bits_of(bundle.manifest.model.scheme, spec.requested.get("lm_head"))
    runs = [run for session in events for run in runs_of(session, bits_of)]
    return _summed(runs, len(rows), len(rows[0]), limits)


def _summed(runs: list[SessionRun], num_rows: int, prompt_len: int, limits: Limits) -> Profile:
    runs.sort(key=lambda run: run.start)
    decode = runs[-(_STEPS - _WARM) :]
    prefill = runs[: len(runs) - _STEPS]
    phases = (
        _phase("prefill", prefill, num_rows * prompt_len, 1, limits),
        _phase("decode", decode, num_rows, len(decode), limits),
    )
    return Profile(limits=limits, phases=phases)


def runs_of(events: Iterable[Mapping[str, Any]], bits_of: BitsOf) -> list[SessionRun]:
    """Every run of a session, in order; `bits_of(op, node name)` says how wide an integer product's weights are."""
    found: list[SessionRun] = []
    nodes: list[Node] = []
    for event in sorted(events, key=lambda event: event.get("ts", 0) + event.get("dur", 0)):
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            nodes.append(_node(event, bits_of))
        elif event.get("name") == "model_run":
            found.append(SessionRun(float(event["ts"]), event["dur"] * 1e-6, nodes))
            nodes = []
    return found


def _node(event: Mapping[str, Any], bits_of: BitsOf) -> Node:
    details = event.get("args", {})
    op, name = str(details.get("op_name", "?")), str(event["name"])
    parameters, read, written = (
        int(details.get(f"{what}_size", 0) or 0) for what in ("parameter", "activation", "output")
    )
    if op.startswith("Gather") or op == "BlockRows":
        parameters, read = 0, written  # only the requested rows of a table are read
    inputs, outputs = _shapes(details.get("input_type_shape")), _shapes(details.get("output_type_shape"))
    num_ops = 0.0
    if op in _FLOAT_PRODUCTS + _INTEGER_PRODUCTS and inputs and outputs and inputs[0] and outputs[0]:
        inner, columns = inputs[0][-1], sum(shape[-1] for shape in outputs)
        if "Gated" in op:
            columns = 2 * outputs[0][-1]  # gate and up in one; other outputs hold the same values in another form
        num_ops = 2.0 * math.prod(outputs[0][:-1]) * columns * inner
        bits = _FLOAT_BITS if op in _FLOAT_PRODUCTS else bits_of(op, name)
        weights = inner * columns * bits // 8 if num_ops else 0  # without rows no weights are read
        # The profile does not show weights that ONNX Runtime packed: such a product has no second matrix.
        if parameters < weights and not any(len(shape) > 1 for shape in inputs[1:]):
            parameters += weights
    return Node(op, event["dur"] * 1e-6, parameters + read + written, num_ops)


def _bits_of(scheme: str, lm_head: object) -> BitsOf:
    """Bits of an integer product's weights: MatMulNBits has 4 or 8, which only the scheme shows."""

    def bits(op: str, name: str) -> int:
        is_four = op == "MatMulNBits" and scheme == "w4" and not (name.startswith("lm_head") and lm_head == "int8")
        return 4 if is_four else 8

    return bits


def _shapes(described: Any) -> list[list[int]]:
    """[{"float": [1, 576]}, ...] as lists of sizes."""
    if not isinstance(described, list):
        return []
    return [list(shape) for item in described if isinstance(item, dict) for shape in item.values()]


def _phase(name: str, runs: Sequence[SessionRun], num_tokens: int, num_steps: int, limits: Limits) -> Phase:
    nodes = [node for run in runs for node in run.nodes]
    operators = [_operator(op, [node for node in nodes if node.op == op], num_steps, limits) for op in _ops(nodes)]
    seconds = sum(run.seconds for run in runs) / num_steps
    ordered = sorted(operators, key=lambda operator: -operator.seconds)
    return Phase(name=name, num_tokens=num_tokens, seconds=seconds, operators=tuple(ordered))


def _ops(nodes: Iterable[Node]) -> list[str]:
    return list(dict.fromkeys(node.op for node in nodes))


def _operator(op: str, nodes: Sequence[Node], num_steps: int, limits: Limits) -> Operator:
    total: Callable[[str], float] = lambda field: sum(getattr(node, field) for node in nodes) / num_steps  # noqa: E731
    num_bytes, num_ops = total("num_bytes"), total("num_ops")
    is_integer = op in _INTEGER_PRODUCTS and limits.int8_ops_per_s is not None
    fastest = limits.int8_ops_per_s if is_integer else limits.float_ops_per_s
    assert fastest is not None
    return Operator(
        op=op,
        calls=len(nodes) / num_steps,
        seconds=total("seconds"),
        num_bytes=num_bytes,
        num_ops=num_ops,
        limit=max(num_bytes / limits.read_bytes_per_s, num_ops / fastest),
    )
