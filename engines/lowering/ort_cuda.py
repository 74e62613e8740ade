"""The lowering for ONNX Runtime's CUDA kernels: those for the CPU that both have, then float16.

GroupQueryAttention and MatMulNBits are the same operators there. INT8 activations have no fused product on CUDA in
ONNX Runtime, nor is its INT8 cache proved here: models with either are refused by name.
"""

import onnx_ir as ir

from piston.core.bundle.interface import StateType
from piston.core.errors import EngineError
from piston.engines.lowering.downcast import DowncastPass
from piston.engines.lowering.group_query_attention import GroupQueryAttentionPass
from piston.engines.lowering.int8_tables import Int8TablesPass
from piston.engines.lowering.matmul_nbits import MatMulNBitsPass
from piston.engines.lowering.pack_linears import PackLinearsPass
from piston.engines.lowering.packed_qkv import PackedQkvPass
from piston.engines.lowering.skip_norm import SkipNormPass
from piston.engines.lowering.tied_head import TiedHeadPass
from piston.engines.lowering.trim_rotary import TrimRotaryPass
from piston.engines.lowering.ungroup_heads import UngroupHeadsPass
from piston.graph.qdq import activation_pair, cache_rounding
from piston.graph.upcast import Float32Pass

DTYPE: StateType = "float16"


def lower_for_ort_cuda(model: ir.Model, max_length: int, dtype: StateType = DTYPE) -> dict[str, int]:
    """Rewrite a canonical graph, in place; returns what was fused, as the manifest states it.

    In float32 it is the reference that is held to a tight bound: the same passes but the last, which only casts.

    Raises:
        EngineError: the model has what ONNX Runtime has no CUDA kernel for; the message names it.
    """
    Float32Pass()(model)
    _refuse_integers(model.graph)
    attention, packed = GroupQueryAttentionPass(fed_total=True), PackedQkvPass()
    products, norms = MatMulNBitsPass(), SkipNormPass()
    ir.passes.Sequential(
        Int8TablesPass(),
        UngroupHeadsPass(),
        attention,
        PackLinearsPass(),
        packed,
        products,
        TiedHeadPass(),
        norms,
        TrimRotaryPass(max_length),
    )(model)
    if attention.refused:
        name, reason = next(iter(attention.refused.items()))
        raise EngineError(f"{name} does not become GroupQueryAttention: {reason}. Build this model for ort-cpu.")
    if dtype != "float32":
        DowncastPass(dtype)(model)
    fused = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    return {
        "attention_layers": len(fused),  # else it would have been refused
        "attention_fused": len(fused),
        "rotary_fused": sum("do_rotary" in node.attributes for node in fused),
        "qkv_packed": packed.packed,
        "norms_fused": norms.fused,
        "weight_only_fused": products.fused,
    }


def lower_encoder_for_ort_cuda(model: ir.Model, dtype: StateType = DTYPE) -> dict[str, int]:
    """The same for a graph without caches, whose Attention has a kernel as it is (ONNX Runtime 1.25 and later).

    Raises:
        EngineError: the model has what ONNX Runtime has no CUDA kernel for; the message names it.
    """
    Float32Pass()(model)
    _refuse_integers(model.graph)
    products = MatMulNBitsPass()
    ir.passes.Sequential(Int8TablesPass(), PackLinearsPass(), products)(model)
    if dtype != "float32":
        DowncastPass(dtype)(model)
    return {
        "attention_layers": sum(node.op_type == "Attention" for node in model.graph),
        "weight_only_fused": products.fused,
    }


def _refuse_integers(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type == "TensorScatter" and cache_rounding(node.inputs[1]) is not None:
            raise EngineError("The INT8 cache of this model is for ort-cpu; calibrate it without --kv for ort-cuda.")
        if node.op_type == "MatMul" and activation_pair(node.inputs[0]) is not None:
            raise EngineError(
                f"{node.name} multiplies INT8 activations, for which ONNX Runtime has no CUDA kernel; build it for "
                "tensorrt, or calibrate with --scheme w8 or w4."
            )
