"""bfloat16 on a CPU that has no kernels for it: float32 arithmetic, every result rounded to bfloat16.

That is about what a float16 graph gets from ONNX Runtime's CPU provider too, which casts around each node but leaves
casts between two of them out.
"""

from pathlib import Path

import onnx_ir as ir

from piston.graph.upcast import upcast

NARROW, WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def write_simulated(lowered: Path, out: Path) -> Path:
    """Write out/model.onnx, which reads and keeps float32 values that are all representable in bfloat16."""
    model = ir.load(lowered)
    graph = model.graph
    narrow = [
        output
        for node in graph
        for output in node.outputs
        if output.dtype == NARROW and node.op_type not in {"Reshape", "Transpose"}
    ]
    upcast(graph, {NARROW})
    for value in narrow:
        _round(graph, value)
    out.mkdir()
    ir.save(model, out / lowered.name, external_data=f"{lowered.name}.data")
    return out / lowered.name


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Let every reader but a cache's output read the value rounded to bfloat16."""
    node = value.producer()
    assert node is not None
    narrowed = ir.node("Cast", [value], {"to": int(NARROW)}, name=f"{value.name}/round")
    widened = ir.node("Cast", [narrowed.outputs[0]], {"to": int(WIDE)}, name=f"{value.name}/widen")
    for cast, dtype in ((narrowed, NARROW), (widened, WIDE)):
        cast.outputs[0].name, cast.outputs[0].shape = cast.name, value.shape
        cast.outputs[0].type = ir.TensorType(dtype)
    readers = [(use.node, use.idx) for use in value.uses() if use.node is not narrowed]
    graph.insert_after(node, [narrowed, widened])
    for reader, index in readers:
        reader.replace_input_with(index, widened.outputs[0])
