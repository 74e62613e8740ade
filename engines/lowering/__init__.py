"""Rewrites from the canonical graph to the form one target runs fastest, one per file."""

from dataclasses import dataclass, field

import onnx_ir as ir

from piston.engines.lowering.group_query_attention import GroupQueryAttentionPass
from piston.engines.lowering.int8_tables import Int8TablesPass
from piston.engines.lowering.integer_matmul import IntegerMatMulPass
from piston.engines.lowering.matmul_nbits import MatMulNBitsPass
from piston.engines.lowering.pack_linears import PackLinearsPass
from piston.engines.lowering.packed_qkv import PackedQkvPass
from piston.engines.lowering.quantize_head import QuantizeHeadPass
from piston.engines.lowering.skip_norm import SkipNormPass
from piston.engines.lowering.tied_head import TiedHeadPass
from piston.engines.lowering.trim_rotary import TrimRotaryPass
from piston.engines.lowering.ungroup_heads import UngroupHeadsPass
from piston.engines.lowering.unsigned_activations import UnsignedActivationsPass
from piston.graph.pattern import MICROSOFT
from piston.graph.upcast import Float32Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """What became of the canonical graph."""

    attention: int  # attentions in all
    fused_attention: int
    fused_rotary: int  # attentions that rotate query and key themselves
    packed_qkv: int
    fused_norms: int
    int8_cache: bool
    windows: tuple[int, ...]  # distinct widths of the sliding windows
    refused: dict[str, str] = field(default_factory=dict)  # attention left canonical -> why


def lower_for_ort_cpu(model: ir.Model, max_length: int, *, int8_head: bool = False) -> Lowered:
    """Rewrite a canonical graph, in place, into the form ONNX Runtime's CPU kernels run fastest.

    `max_length` is the most positions it will be run with; `int8_head` quantizes a float lm_head.
    """
    attention, packed, norms = GroupQueryAttentionPass(), PackedQkvPass(), SkipNormPass()
    ir.passes.Sequential(
        Float32Pass(),
        *([QuantizeHeadPass()] if int8_head else []),
        Int8TablesPass(),
        UngroupHeadsPass(),
        attention,
        PackLinearsPass(),
        packed,
        UnsignedActivationsPass(),
        IntegerMatMulPass(),
        MatMulNBitsPass(),
        TiedHeadPass(),
        norms,
        TrimRotaryPass(max_length),
    )(model)
    fused = [node for node in model.graph if (node.domain, node.op_type) == (MICROSOFT, "GroupQueryAttention")]
    windows = {
        node.attributes["local_window_size"].as_int() for node in fused if "local_window_size" in node.attributes
    }
    return Lowered(
        attention=len(fused) + len(attention.refused),
        fused_attention=len(fused),
        fused_rotary=sum("do_rotary" in node.attributes for node in fused),
        packed_qkv=packed.packed,
        fused_norms=norms.fused,
        int8_cache=attention.int8_cache,
        windows=tuple(sorted(windows)),
        refused=attention.refused,
    )
