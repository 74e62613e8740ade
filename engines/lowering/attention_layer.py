"""One canonical attention, recognised: RotaryEmbedding x2, TensorScatter x2 and Attention on a layer of the cache.

What does not fit GroupQueryAttention's CPU kernel is refused with the reason (ONNX Runtime 1.32, measured): a head_dim
that is no multiple of 8. Rotary is left outside it where head_dim is no multiple of 16 or the width of the tables no
multiple of 8.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from piston.engines.lowering.window_mask import window_of
from piston.graph.pattern import float_attribute, int_attribute, is_weight, producer, static_dims
from piston.graph.qdq import CacheRounding, cache_rounding

RANK = 4  # [batch, heads, seq, head_dim]
HEAD_DIM_UNIT, ROTARY_HEAD_DIM_UNIT, TABLE_UNIT = 8, 16, 8
CACHE_AXES = (-2, 2)


class UnfitError(Exception):
    """Why an attention stays canonical."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """How query and key are rotated by position_ids."""

    cos: ir.Value
    sin: ir.Value
    interleaved: int


@dataclass(frozen=True, slots=True)
class CachePart:
    """Keys or values of one layer: what is new, and the cache before and after."""

    new: ir.Value
    past: ir.Value
    present: ir.Value
    rounding: CacheRounding | None = None  # by which `new` becomes codes in an INT8 cache


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """What GroupQueryAttention needs to know. Query and new keys are those before rotary, if there is one."""

    attention: ir.Node
    query: ir.Value
    keys: CachePart
    values: CachePart
    rotary: Rotary | None
    window: int | None  # None: every earlier position is seen
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def scale(self) -> float:
        """What multiplies query x key."""
        return float_attribute(self.attention, "scale", self.head_dim**-0.5)

    @property
    def softcap(self) -> float:
        """The bound of the scores, 0 for none."""
        return float_attribute(self.attention, "softcap")


def attention_layer(attention: ir.Node, *, int8_cache: bool = False) -> AttentionLayer:
    """Recognise the layer around an Attention node; for an INT8 cache, with new keys and values as before rounding.

    Raises:
        UnfitError: it is not of the canonical form, or not one the kernel can do.
    """
    query, present_key, present_value, *rest = [*attention.inputs, *[None] * 4][:7]
    if query is None or len(static_dims(query)) != RANK:
        raise UnfitError("its query is not [batch, heads, seq, head_dim]")
    if len(attention.outputs) != 1:
        raise UnfitError("it has several results")
    for name in ("softmax_precision", "qk_matmul_output_mode"):
        if int_attribute(attention, name):
            raise UnfitError(f"GroupQueryAttention has no {name}")
    keys, values = _cache_part(present_key, "keys"), _cache_part(present_value, "values")
    if int8_cache:
        keys, values = _unrounded(keys, "keys"), _unrounded(values, "values")
    window = _window(attention, rest)
    heads, head_dim = static_dims(query)[1::2]
    cache = static_dims(keys.past)
    _check_sizes(heads, head_dim, cache, static_dims(values.past))
    rotated = producer(query, "RotaryEmbedding"), producer(keys.new, "RotaryEmbedding")
    rotary = None if None in rotated else _rotary(*rotated, head_dim)  # type: ignore[arg-type]
    if rotary is not None:
        query, new_keys = (node.inputs[0] for node in rotated if node is not None)
        assert query is not None
        assert new_keys is not None
        keys = replace(keys, new=new_keys)
    return AttentionLayer(
        attention=attention,
        query=query,
        keys=keys,
        values=values,
        rotary=rotary,
        window=window,
        heads=heads,
        kv_heads=cache[1],
        head_dim=head_dim,
    )


def _cache_part(present: ir.Value | None, part: str) -> CachePart:
    """What TensorScatter writes into the cache, which must be the graph's own and be read by nobody else."""
    scatter = producer(present, "TensorScatter")
    if scatter is None or present is None:
        raise UnfitError(f"its {part} are not the cache itself")
    past, new, slots = [*scatter.inputs, None][:3]
    mode = scatter.attributes["mode"].as_string() if "mode" in scatter.attributes else "linear"
    if int_attribute(scatter, "axis", -2) not in CACHE_AXES or mode != "linear":
        raise UnfitError(f"its {part} are not written along the capacity")
    if past is None or new is None or not past.is_graph_input() or not present.is_graph_output():
        raise UnfitError(f"its {part} are not a cache of the graph's interface")
    if slots is None or slots.name != "write_indices" or not slots.is_graph_input():
        raise UnfitError(f"its {part} are not written at write_indices")
    if len(present.uses()) != 1:
        raise UnfitError(f"its {part} have other readers")
    return CachePart(new, past, present)


def _unrounded(part: CachePart, name: str) -> CachePart:
    rounding = cache_rounding(part.new)
    if rounding is None:
        raise UnfitError(f"its {name} are not rounded to INT8 as the kernel does")
    return replace(part, new=rounding.source, rounding=rounding)


def _window(attention: ir.Node, rest: list[ir.Value | None]) -> int | None:
    mask, past_key, past_value, kv_lengths = rest
    if past_key is not None or past_value is not None:
        raise UnfitError("it concatenates its past")
    if mask is None:
        if not int_attribute(attention, "is_causal") or kv_lengths is None or kv_lengths.name != "kv_lengths":
            raise UnfitError("it is not causal over kv_lengths")
        return None
    if mask.dtype == ir.DataType.FLOAT:
        raise UnfitError("it adds a bias to its scores, which GroupQueryAttention does not")
    window = window_of(mask)
    if window is None or int_attribute(attention, "is_causal") or kv_lengths is not None:
        raise UnfitError("its mask is not the canonical sliding window")
    return window


def _check_sizes(heads: int, head_dim: int, keys: list[int], values: list[int]) -> None:
    if keys != values or keys[3] != head_dim or min(heads, head_dim, keys[1]) < 1:
        raise UnfitError("its queries, keys and values differ in head_dim")
    if heads % keys[1]:
        raise UnfitError(f"{heads} heads are no multiple of {keys[1]} key-value heads")
    if head_dim % HEAD_DIM_UNIT:
        raise UnfitError(f"head_dim {head_dim} is no multiple of {HEAD_DIM_UNIT}")


def _rotary(query: ir.Node, key: ir.Node, head_dim: int) -> Rotary | None:
    """The tables, where both nodes rotate by them in a way the kernel can do; None leaves rotation outside."""
    if len(query.inputs) != RANK or query.inputs[1:] != key.inputs[1:]:
        return None
    _, cos, sin, positions = query.inputs
    if cos is None or sin is None or positions is None or positions.name != "position_ids":
        return None
    options = {
        (int_attribute(node, "interleaved"), int_attribute(node, "rotary_embedding_dim")) for node in (query, key)
    }
    if len(options) != 1 or not is_weight(cos, 2) or not is_weight(sin, 2):
        return None
    ((interleaved, width),) = options
    table = static_dims(cos)[1]
    if head_dim % ROTARY_HEAD_DIM_UNIT or table % TABLE_UNIT or 2 * table != (width or head_dim):
        return None
    return Rotary(cos, sin, interleaved)
