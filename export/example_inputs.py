"""The example inputs of a module: their types, their dynamic axes, and other sizes to try."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from piston.core.bundle.interface import TensorType
from piston.core.errors import MisuseError

TYPES: dict[torch.dtype, TensorType] = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
Inputs = Mapping[str, torch.Tensor | NDArray[Any]]
Shapes = Mapping[str, Mapping[int, Any]]


def checked_inputs(module: nn.Module, examples: Inputs) -> dict[str, torch.Tensor]:
    """Tensors of types that a graph can read; raises MisuseError."""
    if not isinstance(examples, Mapping) or not examples:
        raise MisuseError("example_inputs must map the names of forward's arguments to tensors, and not be empty.")
    wide = [name for name, weight in module.named_parameters() if weight.dtype not in {*TYPES}]
    if wide:
        raise MisuseError(f"{wide[0]} is {dict(module.named_parameters())[wide[0]].dtype}; export module.float().")
    if elsewhere := [name for name, weight in module.named_parameters() if weight.device.type != "cpu"]:
        raise MisuseError(f"{elsewhere[0]} is on {module.get_parameter(elsewhere[0]).device}; export module.cpu().")
    tensors = {name: torch.as_tensor(value).detach().cpu() for name, value in examples.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            known = ", ".join(TYPES.values())
            raise MisuseError(f"The example of {name!r} is {tensor.dtype}; inputs may be {known}.")
        if not tensor.numel():
            raise MisuseError(f"The example of {name!r} is empty; give one with values.")
    return tensors


def checked_shapes(inputs: Mapping[str, torch.Tensor], shapes: Shapes) -> dict[str, dict[int, Any]]:
    """The dynamic axes of each input; raises MisuseError where one does not fit its example."""
    for name, axes in shapes.items():
        if name not in inputs:
            raise MisuseError(f"dynamic_shapes names {name!r}; the inputs are: {', '.join(inputs)}.")
        for axis in axes:
            if not 0 <= axis < inputs[name].ndim:
                raise MisuseError(f"{name!r} has no axis {axis}; its example has {inputs[name].ndim} axes.")
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        for axis, dim in axes.items():
            size = inputs[name].shape[axis]
            if sizes.setdefault(name_of(dim), size) != size:
                raise MisuseError(
                    f"Axis {axis} of {name!r} is {size} in the example, and another axis named {name_of(dim)!r} is "
                    f"{sizes[name_of(dim)]}; axes of one name must have one size."
                )
            if size < 2:  # noqa: PLR2004
                raise MisuseError(
                    f"Axis {axis} of {name!r} is {size} in the example; give 2 or more: tracing takes 0 and 1 for "
                    "constants."
                )
    return {name: dict(axes) for name, axes in shapes.items()}


def other_sizes(sizes: Mapping[str, int], dims: Mapping[str, Any]) -> list[dict[str, int]]:
    """Sizes of the dynamic axes beside the example's: all larger, and all as small as can be, within their bounds."""
    if not sizes:
        return []
    larger = {name: min(size + 1 + index, _bounds(dims[name])[1]) for index, (name, size) in enumerate(sizes.items())}
    doubled = {name: min(2 * size + 1, _bounds(dims[name])[1]) for name, size in sizes.items()}
    least = {name: max(1, _bounds(dims[name])[0]) for name in sizes}
    found: list[dict[str, int]] = []
    for wanted in (larger, doubled, least):
        if wanted not in found and wanted != dict(sizes):
            found.append(wanted)
    return found


def _bounds(dim: Any) -> tuple[int, int]:
    return (1, 1 << 20) if isinstance(dim, str) else (int(getattr(dim, "min", 1)), int(getattr(dim, "max", 1 << 20)))


def dim_of(dim: Any, made: dict[str, Any]) -> Any:
    """What torch.export takes for a dynamic axis: a Dim is one for each name in `made`, a bare name bounds nothing."""
    return torch.export.Dim.DYNAMIC if isinstance(dim, str) else made.setdefault(name_of(dim), dim)


def name_of(dim: Any) -> str:
    """The name of a dynamic axis."""
    return dim if isinstance(dim, str) else str(dim.__name__)
