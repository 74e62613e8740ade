"""Any torch.nn.Module as a model directory: traced, and compared with the module at several sizes of its inputs."""

import dataclasses
import gc
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from piston.checkpoint.quiet import quiet
from piston.core.arguments import checked_arguments
from piston.core.atomic_dir import atomic_dir, check_free
from piston.core.bundle import GRAPH
from piston.core.bundle.examples import EXAMPLES, Example, write_examples
from piston.core.bundle.interface import MODULE, GraphInterface, TensorSpec
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec, record_files
from piston.core.console import Progress
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.example_inputs import (
    TYPES,
    Inputs,
    Shapes,
    checked_inputs,
    checked_shapes,
    dim_of,
    name_of,
    other_sizes,
)
from piston.export.job import provenance_of, save_graph
from piston.export.module_parity import check_examples, shown
from piston.export.onnx_program import onnx_of
from piston.export.passes.linear_form import LinearFormPass
from piston.export.untraceable import first_line, untraceable

TASK = "module"
Array = NDArray[Any]


@checked_arguments
def export_module(  # noqa: PLR0913 - the options of one command
    module: nn.Module,
    example_inputs: Inputs,
    out: str | Path,
    *,
    dynamic_shapes: Shapes | None = None,
    output_names: Sequence[str] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a module of one's own to the model directory `out`.

    Args:
        module: in float32, on the CPU; it is exported as in evaluation, and left as it was.
        example_inputs: a tensor or array for each argument of `forward`, by its name; these are the graph's inputs.
        out: the directory to write.
        dynamic_shapes: for each input with axes whose size varies, {axis: name}; axes of one name have one size. A
            torch.export.Dim in place of a name can bound the size. All other axes keep the size of the example.
        output_names: of the outputs in their order; by default the keys of a returned mapping, else "output", or
            "output_0", "output_1", ...
        name: of the model, by default that of the class.
        overwrite: replace `out`.
        progress: shows the phases.

    The graph is compared with the module on the example, and on inputs of other sizes whose values are drawn from the
    example's. A size that the module itself refuses is recorded and not compared.

    Raises:
        MisuseError: an example, an axis or a name does not fit.
        UnsupportedModelError: the module cannot be traced; the message names the line.
        ParityError: the graph does not compute what the module does.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
    """
    out, progress = Path(out), progress or Progress(quiet=True)
    check_free(out, overwrite=overwrite, reads=[])
    inputs = checked_inputs(module, example_inputs)
    shapes = checked_shapes(inputs, dynamic_shapes or {})
    names = list(output_names or [])
    training = [part for part in module.modules() if part.training]
    with atomic_dir(out, overwrite=overwrite, reads=[]) as work:
        try:
            return _Export(module.eval(), inputs, shapes, names, name or type(module).__name__, progress).write(work)
        finally:
            for part in training:  # parts that were frozen stay so
                part.training = True


@dataclass(slots=True)
class _Export:
    """One export under way."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    shapes: dict[str, dict[int, Any]]
    output_names: list[str]
    name: str
    progress: Progress
    remarks: list[str] = dataclasses.field(default_factory=list)

    def write(self, work: Path) -> Manifest:
        with self.progress.phase("running the module"):
            examples = self._examples()
        with self.progress.phase("tracing to ONNX"):
            interface = self._trace(work, examples[0])
        gc.collect()
        with self.progress.phase("comparing ONNX Runtime with the module"):
            parity = check_examples(work / GRAPH, interface, examples)
        write_examples(work / EXAMPLES, examples)
        with self.progress.phase("hashing"):
            manifest = Manifest(
                kind="model",
                task=TASK,
                model=ModelSpec(
                    name=self.name,
                    architecture=type(self.module).__name__,
                    num_layers=0,
                    hidden_size=0,
                    vocab_size=0,
                    max_positions=0,
                    dtype="float32",
                ),
                graphs={MODULE: interface},
                tokenizer=TokenizerSpec(),
                files=record_files(work),
                made_by=provenance_of({}, None, dataclasses.asdict(parity), self.remarks),
            )
        manifest.write(work)
        return manifest

    def _examples(self) -> list[Example]:
        """The example, and inputs of other sizes, with what the module gives."""
        sizes = {name_of(dim): self.inputs[name].shape[axis] for name, axis, dim in self._axes()}
        examples = [Example(_arrays(self.inputs), self._outputs(self.inputs))]
        rng = np.random.default_rng(0)
        for wanted in other_sizes(sizes, {name_of(dim): dim for _, _, dim in self._axes()}):
            drawn = {name: self._drawn(name, wanted, rng) for name in self.inputs}
            try:
                examples.append(Example(_arrays(drawn), self._outputs(drawn)))
            except CheckpointError:
                raise
            except Exception as problem:  # noqa: BLE001 - whatever a module raises for a size it does not take
                self.remarks.append(f"The module itself fails at {shown(wanted)}: {first_line(problem)}.")
        if sizes and len(examples) == 1:
            raise MisuseError(
                f"The module fails at every size of its dynamic axes but the example's ({self.remarks[-1]}) Bound the "
                "sizes with torch.export.Dim, or leave dynamic_shapes out."
            )
        return examples

    def _axes(self) -> list[tuple[str, int, Any]]:
        return [(name, axis, dim) for name, axes in self.shapes.items() for axis, dim in axes.items()]

    def _drawn(self, name: str, sizes: Mapping[str, int], rng: np.random.Generator) -> torch.Tensor:
        """An input of other sizes, its values drawn from the example's, so that ids stay ids."""
        example = self.inputs[name]
        shape = list(example.shape)
        for axis, dim in self.shapes.get(name, {}).items():
            shape[axis] = sizes[name_of(dim)]
        if shape == list(example.shape):
            return example
        flat = example.reshape(-1)
        return flat[torch.from_numpy(rng.integers(0, len(flat), shape))]

    @torch.no_grad()
    def _outputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
        found = self.module(**{name: tensor.clone() for name, tensor in inputs.items()})
        named = _named(found, self.output_names)
        self.output_names = list(named)
        for name, tensor in named.items():
            if tensor.dtype.is_floating_point and tensor.isnan().any():
                raise CheckpointError(
                    f"The module computes NaN in {name!r}; look for it in the weights and the example."
                )
        return {name: np.asarray(tensor.numpy()) for name, tensor in named.items()}

    def _trace(self, work: Path, example: Example) -> GraphInterface:
        dims: dict[str, Any] = {}
        shapes = {
            name: {axis: dim_of(dim, dims) for axis, dim in self.shapes.get(name, {}).items()} for name in self.inputs
        }
        # torch 2.13 prints what it had traced where it fails; our message names the line.
        silent = mock.patch.object(importlib.import_module("torch.export._trace"), "print", _silent, create=True)
        try:
            with quiet(), silent, torch.no_grad():
                traced = torch.export.export(self.module, (), dict(self.inputs), dynamic_shapes=shapes)
                graph = onnx_of(traced, list(self.inputs), self.output_names)
        except Exception as problem:
            raise UnsupportedModelError(untraceable(problem)) from problem
        symbols = _symbols(graph.graph, self.shapes)
        for value, name in zip(graph.graph.outputs, self.output_names, strict=True):
            if value.is_graph_input():
                raise UnsupportedModelError(f"The output {name!r} is an input as it is; leave it out of the outputs.")
        save_graph(graph, work, passes=[LinearFormPass()])
        return GraphInterface(
            inputs=tuple(self._input_spec(name) for name in self.inputs),
            outputs=tuple(
                _output_spec(value, example.outputs[name], symbols)
                for value, name in zip(graph.graph.outputs, self.output_names, strict=True)
            ),
        )

    def _input_spec(self, name: str) -> TensorSpec:
        dims = self.shapes.get(name, {})
        tensor = self.inputs[name]
        shape = tuple(name_of(dims[axis]) if axis in dims else size for axis, size in enumerate(tensor.shape))
        return TensorSpec(name=name, dtype=TYPES[tensor.dtype], shape=shape, role="value")


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def _named(found: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    if isinstance(found, Mapping):
        tensors = [(str(name), value) for name, value in found.items() if value is not None]
    else:
        several = found if isinstance(found, list | tuple) else [found]
        tensors = [("output" if len(several) == 1 else f"output_{index}", value) for index, value in enumerate(several)]
    if names and len(names) != len(tensors):
        raise MisuseError(f"output_names names {len(names)} outputs, and the module gives {len(tensors)}.")
    result = dict(zip(names or [name for name, _ in tensors], (value for _, value in tensors), strict=True))
    for name, value in result.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in TYPES:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise UnsupportedModelError(
                f"The output {name!r} is {kind}; outputs may be tensors of {', '.join(TYPES.values())}."
            )
    return result


def _symbols(graph: ir.Graph, shapes: Mapping[str, Mapping[int, Any]]) -> dict[str, str]:
    """The user's names of the axes that torch gave symbols such as s40."""
    found = {}
    for value in graph.inputs:
        for axis, dim in shapes.get(value.name or "", {}).items():
            assert value.shape is not None
            found[_symbol(value.shape[axis])] = name_of(dim)
    return found


def _symbol(size: Any) -> str:
    return str(size.value) if isinstance(size, ir.SymbolicDim) else str(size)


def _output_spec(value: ir.Value, example: Array, symbols: Mapping[str, str]) -> TensorSpec:
    assert value.shape is not None
    assert value.name is not None
    named = [re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), _symbol(size)) for size in value.shape]
    shape = tuple(size if isinstance(size, int) else name for size, name in zip(value.shape, named, strict=True))
    return TensorSpec(name=value.name, dtype=example.dtype.name, shape=shape, role="value")  # type: ignore[arg-type]


def _silent(*_: object, **__: object) -> None:
    """In place of print."""
