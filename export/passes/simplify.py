"""Fold small constants, merge equal nodes, drop what nothing uses: the libraries' own passes, weights left alone."""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants_ir

LARGEST_FOLDED = 4096  # elements: shapes and masks, never a weight


class SimplifyPass(ir.passes.InPlacePass):
    """Preserves the signature and every initializer of more than LARGEST_FOLDED elements."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run to a fixed point of at most three rounds."""
        common.InlinePass()(model)
        for _ in range(3):
            modified = fold_constants_ir(
                model,
                onnx_shape_inference=True,
                input_size_limit=LARGEST_FOLDED,
                output_size_limit=LARGEST_FOLDED,
            ).modified
            rewriter.rewrite(model)
            common.RemoveUnusedNodesPass()(model)
            if not modified:
                break
        ir.passes.Sequential(
            common.IdentityEliminationPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        )(model)
        return ir.passes.PassResult(model, modified=True)
