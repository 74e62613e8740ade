"""RotaryEmbedding x2 + TensorScatter x2 + Attention become one com.microsoft.GroupQueryAttention, in place.

The standard pair costs the whole capacity at every token, GroupQueryAttention only the positions in use. It takes
positions from the lengths, so position_ids must be what the runtime promises: the slots. It wants one row where a step
has several tokens and a past, which is how the runtime prefills. Its `local_window_size` W keeps the keys > query - W,
exactly the canonical mask (ONNX Runtime 1.32, measured).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import is_cross
from piston.engines.lowering.attention_layer import AttentionLayer, UnfitError, attention_layer
from piston.engines.lowering.merged_heads import is_head_swap, merged_heads
from piston.graph.pattern import (
    MICROSOFT,
    constant_ints,
    dims_of,
    emit,
    graph_of,
    replace,
    sole_consumer,
    tidy,
)
from piston.graph.qdq import CacheRounding
from piston.graph.weight import derived_weight

SCALES_AT = 12  # the kernel's inputs k_scale and v_scale
TOTAL = "total_sequence_length"
SUPERFLUOUS = ("position_ids", "write_indices")


class GroupQueryAttentionPass(ir.passes.InPlacePass):
    """Keeps names and shapes of cache inputs and outputs; drops step inputs that nothing reads any more.

    A layer that does not fit is left as it is, and `refused` says why: Attention's name -> reason. Where every layer
    rounds its new keys and values to INT8, the cache becomes INT8 and the kernel does the rounding; the cache is of
    one type, so one layer that cannot leaves all in float, rounded as they were.

    Args:
        fed_total: the most entries of any row come as an input of their own, `total_sequence_length` (int32 scalar),
            instead of being computed. The kernels read it on the host, and a CUDA graph cannot bring it there.
    """

    def __init__(self, *, fed_total: bool = False) -> None:
        super().__init__()
        self._fed_total = fed_total
        self.refused: dict[str, str] = {}
        self.int8_cache = False

    def requires(self, model: ir.Model) -> None:
        """The lengths are among the inputs."""
        if "kv_lengths" not in {value.name for value in model.graph.inputs}:
            raise ir.passes.PreconditionError("The graph has no input kv_lengths; it is not a canonical decoder.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer that fits."""
        attentions = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
        # Over a source there is no cache to write: it stays as it is.
        attentions = [node for node in attentions if not is_cross(getattr(node.inputs[1], "name", None))]
        self.int8_cache = bool(attentions) and all(_has_int8_cache(attention) for attention in attentions)
        lengths: _Lengths | None = None
        for attention in attentions:
            try:
                layer = attention_layer(attention, int8_cache=self.int8_cache)
            except UnfitError as problem:
                self.refused[attention.name or ""] = str(problem)
                continue
            lengths = lengths or _lengths(model.graph, fed_total=self._fed_total)
            _rewrite(layer, lengths)
        if lengths is not None:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
            _remove_unread_inputs(model.graph)
        return ir.passes.PassResult(model, modified=lengths is not None)


def _has_int8_cache(attention: ir.Node) -> bool:
    try:
        attention_layer(attention, int8_cache=True)
    except UnfitError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Lengths:
    seqlens_k: ir.Value  # int32 [batch], one less than the entries each row may see
    total: ir.Value  # int32 scalar, the most entries of any row


def _lengths(graph: ir.Graph, *, fed_total: bool) -> _Lengths:
    """Compute what GroupQueryAttention calls the lengths, once for all layers."""
    kv_lengths = next(value for value in graph.inputs if value.name == "kv_lengths")
    first = graph[0]
    less = emit(first, "Sub", [kv_lengths, constant_ints(graph, 1)], like=kv_lengths)
    seqlens_k = _int32(first, less.outputs[0], "seqlens_k")
    if fed_total:
        total = ir.Value(name=TOTAL, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(()))
        graph.inputs.append(total)
        return _Lengths(seqlens_k, total)
    most = emit(first, "ReduceMax", [kv_lengths], {"keepdims": 0}, like=kv_lengths, dims=())
    return _Lengths(seqlens_k, _int32(first, most.outputs[0], TOTAL))


def _int32(before: ir.Node, value: ir.Value, name: str) -> ir.Value:
    cast = emit(before, "Cast", [value], {"to": int(ir.DataType.INT32)}, like=value).outputs[0]
    cast.name, cast.type = name, ir.TensorType(ir.DataType.INT32)
    return cast


def _rewrite(layer: AttentionLayer, lengths: _Lengths) -> None:
    attention, keys, values = layer.attention, layer.keys, layer.values
    query, key, value = (merged_heads(source, attention) for source in (layer.query, keys.new, values.new))
    inputs: list[ir.Value | None] = [query, key, value, keys.past, values.past, lengths.seqlens_k, lengths.total]
    attributes: dict[str, int | float | str] = {
        "num_heads": layer.heads,
        "kv_num_heads": layer.kv_heads,
        "scale": layer.scale,
    }
    if layer.rotary is not None:
        inputs += [layer.rotary.cos, layer.rotary.sin]
        attributes |= {"do_rotary": 1, "rotary_interleaved": layer.rotary.interleaved}
    if layer.window is not None:
        attributes["local_window_size"] = layer.window
    if layer.softcap:
        attributes["softcap"] = layer.softcap
    if keys.rounding is not None and values.rounding is not None:
        scales = [_scale(attention, part.rounding) for part in (keys, values) if part.rounding is not None]
        inputs += [None] * (SCALES_AT - len(inputs))
        inputs += scales
        kinds = ["PER_CHANNEL" if part.is_per_channel else "PER_TENSOR" for part in (keys.rounding, values.rounding)]
        attributes |= {"k_quant_type": kinds[0], "v_quant_type": kinds[1], "kv_cache_bit_width": 8}
    fused = emit(attention, "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, num_outputs=3, like=query)
    output, present_key, present_value = fused.outputs
    for part, present in ((keys, present_key), (values, present_value)):
        if part.rounding is not None:
            part.past.dtype = ir.DataType.INT8
        present.type = part.past.type
        replace(part.present, present)
    _replace_output(layer, output)


def _scale(attention: ir.Node, rounding: CacheRounding) -> ir.Value:
    """As the kernel wants it: a scalar as one element."""
    if rounding.is_per_channel:
        return rounding.scale
    return derived_weight(graph_of(attention), f"{rounding.scale.name}.kernel", [rounding.scale], [1], np.atleast_1d)


def _replace_output(layer: AttentionLayer, merged: ir.Value) -> None:
    """Let readers of Attention's [batch, heads, seq, head_dim] read `merged`, past the reshape where that undoes it."""
    attention = layer.attention
    transpose = sole_consumer(attention.outputs[0])
    if transpose is not None and transpose.op_type == "Transpose" and is_head_swap(transpose):
        reshape = sole_consumer(transpose.outputs[0])
        if reshape is not None and reshape.op_type == "Reshape" and reshape.outputs[0].shape == merged.shape:
            replace(reshape.outputs[0], merged)
            return
    batch, seq, _ = dims_of(merged)
    sizes = constant_ints(graph_of(attention), 0, 0, layer.heads, layer.head_dim)
    dims = (batch, seq, layer.heads, layer.head_dim)
    by_head = emit(attention, "Reshape", [merged, sizes], like=merged, dims=dims)
    swapped = emit(attention, "Transpose", by_head.outputs, {"perm": (0, 2, 1, 3)})
    replace(attention.outputs[0], swapped.outputs[0])


def _remove_unread_inputs(graph: ir.Graph) -> None:
    for value in [value for value in graph.inputs if value.name in SUPERFLUOUS and not value.uses()]:
        graph.inputs.remove(value)
