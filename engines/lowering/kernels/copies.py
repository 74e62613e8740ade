"""Copies of inputs that calibration puts before linears are read by Piston's own kernels where the originals lie.

Large inputs are split so (`calibration/schemes/channel_splitting.py`): Concat(x, Gather(x, source)). For what
kernels round anyway, the two nodes would cost as much time as writing and reading their output takes.
"""

import onnx_ir as ir

from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import emit, int_attribute, producer, replace, static_dims

SPLIT = {"BlockLinear": "SplitBlockLinear", "GatedBlockLinear": "SplitGatedBlockLinear"}
MOST_BLOCK = 256


class KernelCopiesPass(KernelPass):
    """A product by blocks of a value beside some of its channels becomes one that is told which; to be run last."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        is_product = (
            node.domain == KERNELS and node.op_type in SPLIT and int_attribute(node, "block_size") <= MOST_BLOCK
        )
        return is_product and _copied(node.inputs[0]) is not None

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        copied = _copied(node.inputs[0])
        assert copied is not None
        inputs = [*copied, *node.inputs[1:]]
        size = {"block_size": int_attribute(node, "block_size")}
        count = len(node.outputs)
        made = emit(node, SPLIT[node.op_type], inputs, size, domain=KERNELS, num_outputs=count, like=node.outputs[0])
        for old, new in zip(node.outputs, made.outputs, strict=True):
            replace(old, new)


def _copied(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The parts of Concat(x, Gather(x, source)) along the last axis: x and source."""
    concat = producer(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or not _is_last_axis(concat):  # noqa: PLR2004
        return None
    given, gather = concat.inputs[0], producer(concat.inputs[1], "Gather")
    if gather is None or given is None or gather.inputs[0] is not given or not _is_last_axis(gather):
        return None
    source = gather.inputs[1]
    is_list = source is not None and source.is_initializer() and len(static_dims(source)) == 1
    return (given, source) if is_list and source is not None and source.dtype == ir.DataType.INT64 else None


def _is_last_axis(node: ir.Node) -> bool:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = int_attribute(node, "axis")
    return axis == -1 or (shape is not None and axis == len(shape) - 1)
