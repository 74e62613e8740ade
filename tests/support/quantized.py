"""Quantized canonical graphs: rounded to nearest, activations scaled by their largest magnitude."""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from piston.calibration.graph.linears import by_input, find_linears
from piston.calibration.graph.qdq import QuantizeActivationsPass, QuantizeWeightsPass
from piston.calibration.schemes.channel_splitting import apply_split, split_largest
from piston.calibration.schemes.outliers import add_outliers, round_others
from piston.calibration.schemes.residual import add_remainder, fine_scale
from piston.calibration.schemes.w8a8 import round_kept
from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import FILE_NAME, Manifest, record_files
from piston.graph.rounding import Grid, round_to_nearest

GRIDS = {
    "w8a8": Grid(8),
    "w8a8 mixed": Grid(8),
    "w8a8 remainder": Grid(8),
    "w8": Grid(8),
    "w8 block 32": Grid(8, 32),
    "w4": Grid(4, 32),
    "w4 block 128": Grid(4, 128),
}
RATIO = 7  # of w8a8 remainder: of the scales of what every linear behind an activation function reads
DOWN = ("down_proj", "mlp.c_proj", "dense_4h_to_h")
ALONE = ("layers.1.mlp.down_proj", "layers.0.self_attn.v_proj")  # of w8a8 mixed: with float activations


def quantize(
    source: Path,
    out: Path,
    cache: CacheSpec,
    scheme: str,
    keep: Iterable[str] = (),
    *,
    rows=None,
    wide: Iterable[str] = (),
    split: int = 0,
    outliers: int = 0,
) -> Path:
    """Write out/model.onnx, `source` with its linears quantized but for lm_head and those whose name holds a `keep`.

    Those whose name holds a `wide` have 8 bits, whatever the scheme says. What norms give to them is split into `split`
    copies more. The first `outliers` inputs of each down_proj stay in float.
    """
    model = ir.load(source)
    for value, group in by_input(find_linears(model)).items() if split else ():
        if group[0].input.producer().op_type == "RMSNormalization" and "lm_head" not in group[0].name:
            sizes = np.random.default_rng(len(value)).lognormal(size=group[0].shape[0])
            apply_split(group, split_largest(sizes, split))
    linears = [node for node in linears_of(model) if not any(part in node.name for part in ["lm_head", *keep])]
    scales = largest_activations(source, cache, linears, rows) if scheme.startswith("w8a8") else {}
    alone = ALONE if scheme == "w8a8 mixed" else ()
    weights = {
        node.inputs[1].name: round_to_nearest(node.inputs[1].const_value.numpy().astype(np.float32), grid)
        for node in linears
        for grid in [dataclasses.replace(GRIDS[scheme], bits=8) if any(w in node.name for w in wide) else GRIDS[scheme]]
    } | {
        node.inputs[1].name: round_kept(node.inputs[1].const_value.numpy().astype(np.float32))
        for node in linears
        if any(part in node.name for part in alone)
    }
    for linear in find_linears(model) if outliers else ():
        if linear.name.endswith("down_proj"):
            floats = linear.weight.const_value.numpy().astype(np.float32)
            weights[linear.weight.name] = round_others(floats, GRIDS[scheme], np.arange(outliers))
            add_outliers(linear, weights[linear.weight.name].outliers)
    has_remainder = scheme == "w8a8 remainder"
    known = find_linears(model) if has_remainder else []
    remainders = [(linear, linear.input) for linear in known if linear.name.endswith(DOWN)]
    readers: dict[str, list[str]] = {}
    for node in linears:
        if not any(part in node.name for part in alone):
            readers.setdefault(node.inputs[0].name, []).append(node.name)
    QuantizeWeightsPass(weights)(model)
    read = {name: largest / 127 for name, largest in scales.items() if name in readers}
    for _, value in remainders:
        read[value.name] = fine_scale(scales[value.name], RATIO)
    QuantizeActivationsPass(read, readers)(model)
    for linear, value in remainders:
        add_remainder(linear, value, RATIO * read[value.name])
    out.mkdir(parents=True)
    ir.save(model, out / "model.onnx", external_data="model.onnx.data")
    return out / "model.onnx"


def quantize_model_dir(source: Path, out: Path, scheme: str, keep: Iterable[str] = (), rows=None) -> Path:
    """Write a model directory like `source`, quantized."""
    model = Manifest.read(source)
    quantize(source / "model.onnx", out, model.cache, scheme, keep, rows=rows)
    for path in source.iterdir():
        if path.name not in (FILE_NAME, "model.onnx", "model.onnx.data"):
            shutil.copyfile(path, out / path.name)
    spec = dataclasses.replace(model.model, scheme=scheme.partition(" ")[0])
    dataclasses.replace(model, model=spec, files=record_files(out)).write(out)
    return out


def linears_of(model: ir.Model) -> list[ir.Node]:
    """Every MatMul by a stored matrix."""
    return [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()]


def largest_activations(source: Path, cache: CacheSpec, linears: list[ir.Node], rows=None) -> dict[str, float]:
    """The largest magnitude of each linear's input over one prefill of every row of tokens."""
    model = ir.load(source)
    names = list(dict.fromkeys(node.inputs[0].name for node in linears))
    values = {output.name: output for node in model.graph for output in node.outputs}
    present = [value for value in model.graph.outputs if value.name.startswith("present.")]
    model.graph.outputs[:] = [*present, *(values[name] for name in names)]
    observed = source.parent / "observed.onnx"
    ir.save(model, observed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(observed), options, providers=["CPUExecutionProvider"])
    observed.unlink()
    wanted = {item.name for item in session.get_inputs()}
    if rows is None:
        vocab = next(value.shape[-1] for value in ir.load(source).graph.outputs if value.name == "logits")
        rows = np.random.default_rng(1).integers(0, vocab, (4, 24))
    largest = dict.fromkeys(names, 0.0)
    for row in rows:
        found = session.run(names, {name: value for name, value in _feed(row, cache).items() if name in wanted})
        largest = {
            name: max(largest[name], float(np.abs(array).max())) for name, array in zip(names, found, strict=True)
        }
    return largest


def _feed(row, cache: CacheSpec) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.asarray(row, np.int64)[None],
        "position_ids": np.arange(len(row))[None],
        "write_indices": np.array([0]),
        "kv_lengths": np.array([len(row)]),
        "logits_positions": np.array([[len(row) - 1]]),
        **{state.input: np.zeros(state.sizes(1, len(row)), np.float32) for state in cache.states},
    }


def round_cache(model: ir.Model, scales: dict[str, np.ndarray]) -> None:
    """Round the new keys and values that each TensorScatter writes to INT8, in the canonical form.

    `scales` has one for each cache, by the name of its output: a scalar, or [1, kv_heads, 1, head_dim].
    """
    graph = model.graph
    for scatter in [node for node in graph if node.op_type == "TensorScatter"]:
        new, name = scatter.inputs[1], scatter.outputs[0].name
        scale = _weight(graph, f"{name}.scale", np.asarray(scales[name], np.float32))
        zero = _weight(graph, f"{name}.zero_point", np.array(0, np.int8))
        per_channel = scales[name].ndim > 0
        one = _weight(graph, f"{name}.one", np.array(1, np.float32)) if per_channel else scale
        nodes = [ir.node("Div", [new, scale])] if per_channel else []
        nodes.append(ir.node("QuantizeLinear", [nodes[-1].outputs[0] if nodes else new, one, zero]))
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], one, zero]))
        if per_channel:
            nodes.append(ir.node("Mul", [nodes[-1].outputs[0], scale]))
        for node in nodes:
            is_codes = node.op_type == "QuantizeLinear"
            node.name = f"{name}/{node.op_type}"
            node.outputs[0].name = f"{name}.{node.op_type}"
            node.outputs[0].shape = new.shape
            node.outputs[0].type = ir.TensorType(ir.DataType.INT8 if is_codes else ir.DataType.FLOAT)
        graph.insert_before(scatter, nodes)
        scatter.replace_input_with(1, nodes[-1].outputs[0])


def _weight(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
