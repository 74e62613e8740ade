"""What the passes to Piston's own kernels share: nodes that fit are rewritten, one after the other, and counted."""

from abc import abstractmethod

import onnx_ir as ir

from piston.graph.pattern import tidy

KERNELS = "piston"  # the operators' domain


class KernelPass(ir.passes.InPlacePass):
    """Replaces every node that `fits` by what `rewrite` puts there; `fused` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    @abstractmethod
    def fits(self, node: ir.Node) -> bool:
        """Whether the node, as it stands in the graph, is of a form that the kernel takes."""

    @abstractmethod
    def rewrite(self, node: ir.Node) -> None:
        """Let the readers of the node, and of what goes with it, read the kernel's."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every node that fits and that something still reads."""
        for node in list(model.graph):
            if any(output.uses() or output.is_graph_output() for output in node.outputs) and self.fits(node):
                self.rewrite(node)
                self.fused += 1
        tidy(model)
        model.opset_imports[KERNELS] = 1
        return ir.passes.PassResult(model, modified=bool(self.fused))
