"""A toy as a plan of FakeTensorRT: the very file that the compiler gets, with TRT_Attention as a function."""

import dataclasses

import onnx_ir as ir
from fake_tensorrt import make_plan

from piston.engines.tensorrt.equivalence.attention_function import attach
from piston.engines.tensorrt.lowering import Sizes, lower_for_tensorrt
from piston.engines.tensorrt.profiles import profiles_of


def plan_of(path, spec, *, max_batch, max_length, chunk=None, max_logits=None, **header):
    """Bytes of a plan for the type and layout of a CacheSpec, and the sizes it is made for."""
    model = ir.load(path)
    sizes = Sizes.of(spec, max_batch, max_length)
    lower_for_tensorrt(model, sizes, spec.dtype)
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    attach(proto)
    sizes = dataclasses.replace(sizes, chunk=chunk or sizes.chunk, max_logits=max_logits or sizes.max_logits)
    return make_plan(proto, profiles_of(model.graph, sizes), **header), sizes
