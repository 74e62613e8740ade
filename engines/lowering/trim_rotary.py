"""Rotary tables end at the longest sequence that was asked for."""

import functools

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import MICROSOFT, is_weight, static_dims, tidy
from piston.graph.weight import derived_weight

TABLES = {("", "RotaryEmbedding"): (1, 2), (MICROSOFT, "GroupQueryAttention"): (7, 8)}


class TrimRotaryPass(ir.passes.InPlacePass):
    """Positions below `max_length` rotate as before; the kernel refuses later ones."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut every table that is longer."""
        trimmed: dict[ir.Value, ir.Value] = {}
        for node in model.graph:
            for index in TABLES.get((node.domain, node.op_type), ()):
                table = node.inputs[index] if index < len(node.inputs) else None
                if table is None or not is_weight(table, 2) or static_dims(table)[0] <= self.max_length:
                    continue
                if table not in trimmed:
                    dims = [self.max_length, static_dims(table)[1]]
                    first = functools.partial(_first, count=self.max_length)
                    trimmed[table] = derived_weight(model.graph, f"{table.name}.trimmed", [table], dims, first)
                node.replace_input_with(index, trimmed[table])
        if trimmed:
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(trimmed))


def _first(array: np.ndarray, count: int) -> np.ndarray:
    return array[:count]
