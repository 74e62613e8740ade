"""Layers in lockstep: in float16 and bfloat16 every layer starts from what the canonical graph computed before it.

A trained model amplifies rounding: logits of two right graphs end several per cent apart where a token has massive
activations, which would hide a real fault. Layer by layer each is held to a few roundings. What the layers make of one
another is seen in the float32 twin, which runs from end to end.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from piston.engines.equivalence.activation_injection import GIVEN, OWN

STREAM = re.compile(r"layers\.\d+\.output")


def stream_names(path: Path) -> list[str]:
    """The residual stream after each layer, as the exporter names it."""
    return [str(output.name) for node in ir.load(path).graph for output in node.outputs if _is_stream(output)]


def write_exposed(canonical: Path, out: Path) -> Path:
    """Write out/model.onnx, the canonical graph with every stream as an output `<name>.given`."""
    model = ir.load(canonical)
    for value in [output for node in model.graph for output in node.outputs if _is_stream(output)]:
        _copy_out(model.graph, value, GIVEN)
    out.mkdir()
    for data in {item.const_value.location for item in _external(model)}:  # type: ignore[union-attr]
        shutil.copyfile(canonical.with_name(data), out / data)  # onnx_ir refuses links, as it should
    ir.save(model, out / canonical.name)
    return out / canonical.name


@contextmanager
def in_lockstep(lowered: Path, names: list[str]) -> Iterator[Path]:
    """A copy of `lowered`, beside it, whose layers read inputs `<name>.given` and give out `<name>.own`."""
    if not names:
        yield lowered
        return
    model = ir.load(lowered)
    graph = model.graph
    values = {str(output.name): output for node in graph for output in node.outputs}
    for name in names:
        value = values[name]
        given = ir.Value(name=f"{name}{GIVEN}", type=value.type, shape=value.shape)
        value.replace_all_uses_with(given)
        graph.inputs.append(given)
        _copy_out(graph, value, OWN)
    path = lowered.with_name("lockstep.onnx")
    ir.save(model, path)
    try:
        yield path
    finally:
        path.unlink()


def _is_stream(value: ir.Value) -> bool:
    return STREAM.fullmatch(value.name or "") is not None


def _copy_out(graph: ir.Graph, value: ir.Value, suffix: str) -> None:
    node = value.producer()
    assert node is not None
    copy = ir.node("Identity", [value], name=f"{value.name}{suffix}")
    copy.outputs[0].name, copy.outputs[0].shape, copy.outputs[0].type = copy.name, value.shape, value.type
    graph.insert_after(node, copy)
    graph.outputs.append(copy.outputs[0])


def _external(model: ir.Model) -> list[ir.Value]:
    weights = model.graph.initializers.values()
    return [value for value in weights if isinstance(value.const_value, ir.ExternalTensor)]
