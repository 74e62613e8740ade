"""Describes a single file, an ONNX graph or a plan, as JSON and as text; nothing is loaded."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.core.bundle.onnx_header import OnnxHeader, TensorInfo
from piston.core.bundle.plan_header import PlanHeader
from piston.core.errors import BundleCorruptError, BundleNotFoundError

PLAN_TAGS, GGUF_TAG = (b"ftrt", b"vtrt"), b"GGUF"
MANY = 8  # inputs or operators to list; the others are only counted


def inspect_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts of a plan or an ONNX file, as JSON and as lines.

    Raises:
        BundleNotFoundError: the file does not exist.
        BundleCorruptError: it is neither, or it is damaged.
    """
    if not path.is_file():
        raise BundleNotFoundError(f"{path} does not exist; check the path.")
    with path.open("rb") as file:
        tag = file.read(4)
    if tag in PLAN_TAGS:
        plan = PlanHeader.read(path)
        return {"kind": "plan", **dataclasses.asdict(plan), "file_size": path.stat().st_size}, [plan_line(plan, path)]
    if tag == GGUF_TAG:
        raise BundleCorruptError(f"{path} is a GGUF checkpoint, which is not described; see `piston doctor {path}`.")
    graph = OnnxHeader.read(path)
    return {"kind": "onnx", **dataclasses.asdict(graph)}, graph_lines(graph, path)


def plan_line(plan: PlanHeader, path: Path) -> str:
    """Compiler, version, GPUs and size of a plan."""
    version = ".".join(str(number) for number in plan.version)
    gpus = ", ".join(plan.compute_capabilities) or "the GPU it was built on"
    size = path.stat().st_size
    cut = f", TRUNCATED: {plan.size:,} bytes were written" if plan.size not in (None, size) else ""
    return f"plan       {plan.compiler} {version}, for {gpus}, {size / 1e6:,.1f} MB{cut}"


def graph_lines(graph: OnnxHeader, path: Path) -> list[str]:
    """A graph as lines of text."""
    opsets = ", ".join(f"{domain or 'onnx'} {version}" for domain, version in graph.opsets.items())
    lines = [
        f"onnx       {path.name}, IR {graph.ir_version}, opset {opsets}"
        + (f", by {graph.producer}" if graph.producer else ""),
        f"inputs     {_tensors(graph.inputs)}",
        f"outputs    {_tensors(graph.outputs)}",
        f"operators  {sum(graph.operators.values())}: {_counted(graph.operators)}",
        weights_line(graph),
    ]
    for name in graph.external_files:
        there = path.parent / name
        lines.append(f"  in       {name}" + ("" if there.is_file() else ", WHICH IS MISSING"))
    return lines


def weights_line(graph: OnnxHeader) -> str:
    """The bytes of weights by type."""
    total = sum(graph.weights.values())
    mix = ", ".join(f"{name} {_size(size)}" for name, size in sorted(graph.weights.items(), key=lambda item: -item[1]))
    return f"weights    {graph.num_weights} tensors, {_size(total)}" + (f": {mix}" if mix else "")


def _tensors(tensors: tuple[TensorInfo, ...]) -> str:
    shown = [f"{item.name} {item.type}[{', '.join(str(dim) for dim in item.shape)}]" for item in tensors[:MANY]]
    rest = len(tensors) - MANY
    return "; ".join(shown) + (f"; and {rest} more" if rest > 0 else "") or "none"


def _counted(operators: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(operators.items())[:MANY]]
    rest = len(operators) - MANY
    return ", ".join(shown) + (f", and {rest} kinds more" if rest > 0 else "")


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 10**5 else f"{nbytes:,} bytes"
