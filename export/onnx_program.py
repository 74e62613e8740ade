"""torch.onnx.export as every graph is traced with it, without computing again what the first trace found.

torch.onnx.export decomposes a program into operators that have an ONNX translation by tracing it again. That takes as
long as the trace and the translation together, and for most models it only renames operators. Here a program is traced
again only where an operator has no translation or changes its input. Its pass that makes type promotion explicit runs
every operator on fake tensors; here it takes what the trace recorded, and runs those that it inserts or changes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
import torch._dynamo.config
import torch.fx.config
from torch import fx, nn
from torch.export import ExportedProgram

from piston.export.signature import OPSET

ATEN = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001
# Composite operators that torch.onnx translates as they are. Another one may have to be decomposed.
TRANSLATED = {
    ATEN.chunk.default,
    ATEN.contiguous.default,
    ATEN.layer_norm.default,
    ATEN.linear.default,
    ATEN.matmul.default,
    ATEN.reshape.default,
    ATEN.rms_norm.default,
    ATEN.softmax.int,
    ATEN.sym_size.int,
    ATEN.type_as.default,
}
# Operators without a translation, and what computes the same from the same arguments (detach_ changes no value).
EQUAL = {
    ATEN.__and__.Tensor: ATEN.bitwise_and.Tensor,
    ATEN.__or__.Tensor: ATEN.bitwise_or.Tensor,
    ATEN.detach_.default: ATEN.detach.default,
    ATEN.min.other: ATEN.minimum.default,
}


def onnx_of(
    model: nn.Module | ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    example: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Any] | None = None,
) -> ir.Model:
    """The graph of a module in inference mode, or of a program that torch.export made of one.

    Args:
        model: its weights are shared with the graph.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        example: arguments of the module by name; None for a program.
        shapes: of each, as torch.export takes dynamic_shapes; None for a program.
    """
    decompose = _where_needed(ExportedProgram.run_decompositions)
    with (
        mock.patch.object(ExportedProgram, "run_decompositions", decompose),
        _promotion_by_record(),
        # Each takes about a tenth of the trace of a small model. An ExportedProgram has its stack traces already, so
        # errors in a user's module still name the line.
        mock.patch.object(torch.fx.config, "do_not_emit_stack_traces", isinstance(model, nn.Module), create=True),
        mock.patch.object(torch._dynamo.config, "fake_tensor_cache_enabled", False),  # noqa: SLF001
    ):
        program = torch.onnx.export(
            model,
            (),
            kwargs=None if example is None else dict(example),
            dynamic_shapes=None if shapes is None else dict(shapes),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            optimize=False,  # its constant folding would hold a second copy of every weight; passes/ does better
            verbose=False,
        )
    assert program is not None
    return program.model


def _where_needed(decompose: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    def run_decompositions(program: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
        """`table` has a decomposition of every operator that has no translation but may be kept."""
        for node in program.graph.nodes:
            _simplify(node)
        needed = any(_is_decomposed(node.target, table) for node in program.graph.nodes if node.op == "call_function")
        return decompose(program, table) if needed else program

    return run_decompositions


@contextlib.contextmanager
def _promotion_by_record() -> Iterator[None]:
    """The pass for type promotion takes the values of operators it leaves alone from the trace (torch 2.13)."""
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter = type_promotion._TypePromotionInterpreter  # noqa: SLF001
    except (ImportError, AttributeError):  # another torch: slower, and the same graph
        yield
        return
    run = interpreter.run_node

    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        if rule := type_promotion.get_type_promotion_rule(node, self.type_promotion_table):
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]  # of a changed operator that of its second run

    with mock.patch.object(interpreter, "run_node", run_node):
        yield


def _simplify(node: fx.Node) -> None:
    """Replace an operator without a translation by one that has it."""
    if node.target in EQUAL:
        node.target = EQUAL[node.target]
    elif node.target == ATEN.square.default:
        node.target, node.args = ATEN.pow.Tensor_Scalar, (node.args[0], 2)
    elif node.target == ATEN.dropout.default and node.args[2] is False:
        node.target, node.args = ATEN.alias.default, node.args[:1]
    elif isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket is ATEN.to:  # noqa: SLF001
        source, dtype = node.all_input_nodes[0], node.meta["val"].dtype
        is_cast = source.meta["val"].dtype != dtype
        node.target = ATEN._to_copy.default if is_cast else ATEN.alias.default  # noqa: SLF001
        node.args, node.kwargs = (source,), {"dtype": dtype} if is_cast else {}


def _is_decomposed(operator: Any, table: Mapping[Any, Any]) -> bool:
    if not isinstance(operator, torch._ops.OpOverload):  # noqa: SLF001
        return isinstance(operator, torch._ops.HigherOrderOperator)  # noqa: SLF001
    composite = operator.has_kernel_for_dispatch_key(COMPOSITE) and operator not in TRANSLATED
    return operator in table or composite or operator._schema.is_mutable  # noqa: SLF001
