"""Names that a reader of the graph, a calibration recipe and an error message can use.

Weights get the checkpoint's parameter names, each node the path of its module, each decoder layer's result
`layers.{i}.output`; the tracer's notes, which hold paths of the exporting machine, are dropped.
"""

import ast
import re
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common

SCOPES = "pkg.torch.onnx.name_scopes"
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)$")
WRAPPER = "model."  # CanonicalDecoder's own attribute


class NameTensorsPass(ir.passes.InPlacePass):
    """Changes names and metadata only.

    Args:
        stack: what the names of modules must contain whose layers are counted, such as `encoder`: the graph of an
            encoder also has parts of a decoder's layers.
    """

    def __init__(self, stack: str = "") -> None:
        super().__init__()
        self.stack = stack

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename initializers, nodes and layer outputs."""
        for value in list(model.graph.initializers.values()):
            name = value.name or ""
            if name.startswith(WRAPPER):
                value.name = name.removeprefix(WRAPPER)
        seen: Counter[str] = Counter()
        last: dict[int, ir.Node] = {}
        for node in model.graph:
            scopes = _scopes(node)
            module = next((scope for scope in reversed(scopes) if scope), "step")
            seen[f"{module}/{node.op_type}"] += 1
            count = seen[f"{module}/{node.op_type}"]
            node.name = f"{module}/{node.op_type}" + (f"_{count}" if count > 1 else "")
            for scope in scopes:
                if self.stack in scope and (match := LAYER.search(scope)) is not None:
                    last[int(match[1])] = node
                    break
        for layer, node in last.items():
            if not node.outputs[0].is_graph_output():
                node.outputs[0].name = f"layers.{layer}.output"
        common.ClearMetadataAndDocStringPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _scopes(node: ir.Node) -> list[str]:
    """Module paths from the root to the node's own, without the operator's name at the end."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return []
    return [
        scope.removeprefix(WRAPPER) if scope != "model" else "" for scope in scopes[:-1] if not scope.startswith("_")
    ]
