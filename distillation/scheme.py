"""What each linear of a student rounds to: from a scheme, or from a calibrated model directory of its teacher."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from piston.core.bundle import GRAPH
from piston.core.errors import MisuseError
from piston.distillation.rounding import InputScale, StudentLinear
from piston.distillation.structure import HEAD, linears_of, mlp_of
from piston.graph.pattern import array_of
from piston.graph.qdq import activation_pair, quantized_weight, remainders
from piston.graph.rounding import Floats, Grid, searched_scale
from piston.graph.trained_scales import TrainedScales
from piston.runtime.bundle import Bundle

Scheme = Literal["fp", "w4", "w8", "w8a8"]
SCHEMES: tuple[Scheme, ...] = ("fp", "w4", "w8", "w8a8")
NARROW, TENTH = 3, 10  # as `piston calibrate --scheme w4` chooses linears of eight bits


@dataclass(frozen=True, slots=True)
class LinearRounding:
    """How one linear rounds: the grid and the scales [blocks, N] of its weight, and the scale of its input."""

    grid: Grid
    scales: Floats
    read: InputScale | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A calibrated model directory: how its linears round, and its weights by the names of the checkpoint."""

    scheme: str
    block: int
    roundings: Mapping[str, LinearRounding]
    weights: Mapping[str, Floats]  # as the graph has them: [in, out] for linears


def weight_only(model: Any, bits: int, block: int) -> dict[str, LinearRounding]:
    """Scales searched for the weights as they are; w4 gives few linears eight bits, as `piston calibrate` does."""
    wide = eight_bits(model) if bits == 4 else set()  # noqa: PLR2004
    found = {}
    for name, linear in linears_of(model):
        grid = Grid(8 if name in wide else bits, block)
        weight = np.ascontiguousarray(linear.weight.detach().cpu().numpy().T)
        scales = np.stack([searched_scale(weight[part], grid) for part in grid.block_slices(len(weight))])
        found[name] = LinearRounding(grid, scales)
    return found


def eight_bits(model: Any) -> set[str]:
    """The narrow linears, and those that read MLPs' channels in the first and last tenth of the layers."""
    count = int(model.config.num_hidden_layers)
    ends = [*range(count // TENTH), *range(count - count // TENTH, count)]
    narrow = {name for name, linear in linears_of(model) if NARROW * linear.out_features <= linear.in_features}
    return narrow | {mlp_of(model, layer).reads for layer in ends}


def read_start(directory: Path) -> Start:
    """Read what `piston calibrate` wrote.

    Raises:
        BundleError: no verified model directory.
        MisuseError: it is a bundle, or has what a checkpoint cannot hold: copies of inputs, outliers.
    """
    manifest = Bundle.open(directory).manifest
    scheme = manifest.model.scheme.removesuffix("+kv8")
    if manifest.kind != "model":
        raise MisuseError(f"--start {directory} is a bundle; give the model directory that piston calibrate wrote.")
    graph = ir.load(directory / GRAPH).graph
    found, block, reads = dict[str, LinearRounding](), 0, dict[str, InputScale]()
    second = {remainder.codes: name for name, remainder in remainders(graph).items()}
    steps = {str(node.outputs[0].name): float(array_of(node.inputs[1])) for node in graph if _is_int8_scale(node)}
    weights = {name: np.asarray(array_of(value)) for name, value in graph.initializers.items() if _is_float(value)}
    for node in graph:
        weight = quantized_weight(node.inputs[1]) if node.op_type == "MatMul" and not node.domain else None
        name = (node.name or "").rpartition("/")[0]
        if weight is None or name.endswith("/remainder"):
            continue
        if "/" in name:
            raise MisuseError(
                f"--start {directory} has linears whose inputs are outliers or copies ({name}); calibrate it without "
                "--outliers and with --split 0."
            )
        scales = np.asarray(array_of(weight.scales), np.float32)
        pair = activation_pair(node.inputs[0])
        read = None
        if pair is not None:
            fine, coarse = steps[str(pair.codes.name)], second.get(str(pair.codes.name))
            once = InputScale(fine, 0 if coarse is None else round(steps[coarse] / fine))
            read = reads.setdefault(str(pair.codes.name), once)  # linears of one input share its scale
        grid = Grid(weight.bits, weight.block)
        found[name] = LinearRounding(grid, scales if weight.block else scales[None], read)
        block = max(block, weight.block if weight.bits == 4 or scheme != "w8a8" else 0)  # noqa: PLR2004
        spread = scales if not weight.block else np.repeat(scales, weight.block, axis=0)[: len(array_of(weight.codes))]
        weights[f"{name}.weight"] = array_of(weight.codes).astype(np.float32) * spread
    return Start(scheme, block, found, weights)


def load_weights(model: Any, start: Start, place: Path) -> None:
    """Give a model the weights of a calibrated directory, norms that smoothing changed among them.

    Raises:
        MisuseError: a weight has another shape, as copies of inputs give it.
    """
    state = model.state_dict()
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, target in state.items():
        if (value := start.weights.get(name)) is None:
            continue
        is_tied_head = name.rpartition(".")[0] == HEAD and value.shape == tuple(target.shape)  # a table, [out, in]
        array = value.T if name in transposed and not is_tied_head else value
        if array.shape != tuple(target.shape):
            raise MisuseError(
                f"--start {place} has {name} as {list(array.shape)}, the student as {list(target.shape)}; calibrate "
                "the student's own export, with --split 0."
            )
        target.copy_(torch.tensor(array))


def round_student(
    model: Any, roundings: Mapping[str, LinearRounding], masks: Mapping[str, Tensor]
) -> dict[str, StudentLinear]:
    """Replace the linears of a student by ones that round, or that keep zeros; returns them by path."""
    replaced, readers = dict[str, StudentLinear](), dict[int, StudentLinear]()
    for name, linear in list(linears_of(model)):
        rounding, mask = roundings.get(name), masks.get(name)
        if rounding is None and mask is None:
            continue
        new = StudentLinear(
            linear,
            grid=None if rounding is None else rounding.grid,
            scales=None if rounding is None else torch.tensor(rounding.scales, device=linear.weight.device),
            read=None if rounding is None else rounding.read,
            mask=mask,
        )
        if rounding is not None and rounding.read is not None:  # one scale for all that read one value
            new.input_growth = readers.setdefault(id(rounding.read), new).input_growth
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, new.to(linear.weight.device))
        replaced[name] = new
    return replaced


@torch.no_grad()
def plain_state(model: nn.Module, linears: Mapping[str, StudentLinear]) -> dict[str, Tensor]:
    """The state of a model of ordinary linears, with weights as the engine has them: rounding changes nothing."""
    state = {name: value for name, value in model.state_dict().items() if not _is_ours(name, linears)}
    for name, linear in linears.items():
        state[f"{name}.weight"] = linear.rounded_weight().detach()
    return state


@torch.no_grad()
def trained_scales(linears: Mapping[str, StudentLinear]) -> TrainedScales:
    """The scales as they are now."""
    weights, inputs = {}, {}
    for name, linear in linears.items():
        if (scales := linear.weight_scales()) is not None:
            weights[name] = np.ascontiguousarray(scales.detach().cpu().numpy().T)
        if (scale := linear.input_scale()) is not None:
            inputs[name] = (float(scale), linear.ratio)
    return TrainedScales(weights, inputs)


def recipe_of(
    scheme: str, block: int, model: Any, linears: Mapping[str, StudentLinear], scales: bytes
) -> dict[str, Any]:
    """What `piston calibrate --recipe` reads to give the student's export exactly these codes."""
    grids = {name: linear.grid for name, linear in linears.items() if linear.grid is not None}
    recipe: dict[str, Any] = {
        "scheme": scheme,
        "block": block,
        "rounding": "nearest",
        "keep": [name for name, _ in linears_of(model) if name not in grids],
        "trained": hashlib.sha256(scales).hexdigest(),
    }
    if scheme == "w4":
        recipe["int8"] = [name for name, grid in grids.items() if grid.bits == 8]  # noqa: PLR2004
    if scheme == "w8a8":
        recipe["kept_in_float"] = [name for name in grids if linears[name].input_growth is None]
        recipe["smooth"] = False
    return recipe


_OWN = re.compile(r"(.+)\.(mask|base|input_base|growth|input_growth)")


def _is_ours(name: str, linears: Mapping[str, StudentLinear]) -> bool:
    match = _OWN.fullmatch(name)
    return match is not None and match[1] in linears


def _is_int8_scale(node: ir.Node) -> bool:
    scale = node.inputs[1] if node.op_type == "QuantizeLinear" and not node.domain else None
    return scale is not None and scale.is_initializer() and not scale.shape


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and value.const_value is not None
