"""Rewrites of the traced graph, one per file, run in the order of `canonicalize`."""

import onnx_ir as ir

from piston.export.passes.fuse_partial_rotary import FusePartialRotaryPass
from piston.export.passes.name_tensors import NameTensorsPass
from piston.export.passes.simplify import SimplifyPass
from piston.export.passes.static_reshapes import StaticReshapesPass


def canonicalize(model: ir.Model, stack: str = "") -> None:
    """Turn a traced model into the canonical form, in place; `stack` as of NameTensorsPass."""
    ir.passes.Sequential(SimplifyPass(), StaticReshapesPass(), FusePartialRotaryPass(), NameTensorsPass(stack))(model)
