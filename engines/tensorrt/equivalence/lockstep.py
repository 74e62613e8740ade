"""Layers in lockstep: in float16 and bfloat16 every layer starts from what the canonical graph computed before it.

A trained model amplifies rounding: logits of two right graphs end several per cent apart where a token has massive
activations, which would hide a real fault. Layer by layer each is held to a few roundings. What the layers make of one
another is seen in the float32 reference, which runs from end to end.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside

STREAM = re.compile(r"layers\.\d+\.output")
NORMS = {"LayerNormalization", "RMSNormalization"}


def stream_names(path: Path) -> list[str]:
    """The residual stream after each layer, as the exporter names it; where it names none, what norms give."""
    return _streams(GraphTap(ir.load(path)))


def write_exposed(canonical: Path, out: Path) -> Path:
    """Write out/model.onnx, the canonical graph with every stream as an output `<name>.given`."""
    model = ir.load(canonical)
    tap = GraphTap(model)
    for name in _streams(tap):
        tap.give_out(tap.values[name], f"{name}{GIVEN}")
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
    tap = GraphTap(model)
    for name in names:
        tap.inject(tap.values[name], name)
        tap.give_out(tap.values[name], f"{name}{OWN}")
    with saved_beside(model, lowered, "lockstep") as path:
        yield path


def _streams(tap: GraphTap) -> list[str]:
    layers = [name for name in tap.values if STREAM.fullmatch(name)]
    norms = [str(node.outputs[0].name) for node in tap.graph if node.op_type in NORMS]
    outputs = {value.name for value in tap.graph.outputs}
    return layers or [name for name in norms if name not in outputs]


def _external(model: ir.Model) -> list[ir.Value]:
    weights = model.graph.initializers.values()
    return [value for value in weights if isinstance(value.const_value, ir.ExternalTensor)]
