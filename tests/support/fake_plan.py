"""A toy's canonical graph as a plan of FakeTensorRT: static capacity, next.* outputs, the sampling head."""

import onnx
import onnx_ir as ir
from fake_tensorrt import make_plan

from piston.engines.tensorrt.lowering import Sizes
from piston.engines.tensorrt.lowering.next_step import NextStepPass
from piston.engines.tensorrt.lowering.sampling_head import SamplingHeadPass
from piston.engines.tensorrt.lowering.static_capacity import StaticCapacityPass


def plan_of(path, spec, *, max_batch, max_length, chunk=None, max_logits=None, **header):
    """Bytes of a plan, and the sizes it is made for."""
    model = ir.load(path)
    sizes = Sizes.of(spec, max_batch, max_length)
    ir.passes.Sequential(
        StaticCapacityPass(sizes.capacity), NextStepPass(max_length), SamplingHeadPass(sizes.capacity)
    )(model)
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    onnx.checker.check_model(proto)
    data = make_plan(
        proto,
        max_batch=max_batch,
        chunk=chunk or sizes.chunk,
        max_logits=max_logits or sizes.max_logits,
        **header,
    )
    return data, sizes
