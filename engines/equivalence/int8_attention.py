"""What a GroupQueryAttention over an INT8 cache gives where another kernel has rounded one key or value otherwise.

A key or value on the edge between two codes may fall to either side, and one code is as much of an attention as
rounding itself is. So a kernel that takes the node's place is compared with what the node would have given over the
codes that the kernel wrote: its result, plus what those codes change in the same attention computed here in float64.
Nothing is added where both wrote the same, and each code must be one that its key or value is rounded to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.errors import ParityError
from piston.engines.equivalence.lockstep import CODES, NEAREST
from piston.engines.lowering.kernels.addends import ZERO_POINT, codes_reader
from piston.graph.pattern import array_of, float_attribute, int_attribute

Array = NDArray[Any]
PAST_KEY, LENGTHS, COS, SIN = 3, 5, 7, 8
HEADS = slice(0, 3)
SCALES = slice(12, 14)


@dataclass(frozen=True, slots=True)
class Int8Attention:
    """A GroupQueryAttention, by the names of what it reads and gives."""

    heads: tuple[str, ...]  # [batch, seq, (heads + 2 kv_heads) head_dim], or queries, keys and values apart
    lengths: str  # [batch], one less than the entries that the last token sees
    result: str  # [batch, seq, heads head_dim]
    caches: tuple[str, str]  # present keys and values, INT8 [batch, kv_heads, capacity, head_dim]
    num_heads: int
    kv_heads: int
    scale: float  # of scores
    cos: Array  # [positions, head_dim / 2]
    sin: Array
    scales: tuple[Array, Array]  # of keys and values, [1, kv_heads, 1, head_dim] or of one element
    code_scale: float | None  # of the codes about 128 that the result becomes, if it does

    def given_over(self, run: Mapping[str, Array], caches: Mapping[str, Array]) -> Array | None:
        """What a run of the node would have given, rounded if it is, over other caches; None where they are its own.

        Raises:
            ParityError: one of the codes that this run wrote into them does not stand for its key or value.
        """
        packed = np.concatenate([run[name] for name in self.heads], axis=-1)
        lengths = run[self.lengths].astype(np.int64)
        positions = lengths[:, None] + np.arange(1 - packed.shape[1], 1)
        heads = packed.reshape(*packed.shape[:2], self.num_heads + 2 * self.kv_heads, -1)
        queries, keys, values = np.split(heads, [self.num_heads, self.num_heads + self.kv_heads], axis=2)
        queries, keys = (self._rotated(array, positions) for array in (queries, keys))
        for name, scale, exact in zip(self.caches, self.scales, (keys, values), strict=True):
            _check_written(name, caches[name], exact / scale.reshape(_by_head(scale)), positions)
        if all(np.array_equal(run[name], caches[name]) for name in self.caches):
            return None
        moved = self._attended(queries, positions, caches) - self._attended(queries, positions, run)
        result: Array = run[self.result] + moved
        if self.code_scale is None:
            return np.asarray(result, np.float32)
        return np.asarray((np.rint(result / self.code_scale) + ZERO_POINT).clip(0, 255), np.uint8)

    def _rotated(self, heads: Array, positions: Array) -> Array:
        """Turn [batch, seq, heads, head_dim], halves against each other, by the angles of their positions."""
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        low, high = np.split(heads, 2, axis=-1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def _attended(self, queries: Array, positions: Array, caches: Mapping[str, Array]) -> Array:
        keys, values = (
            caches[name].astype(np.float64) * scale for name, scale in zip(self.caches, self.scales, strict=True)
        )
        batch, seq, _, head_dim = queries.shape
        grouped = queries.reshape(batch, seq, self.kv_heads, -1, head_dim)
        scores = np.einsum("bskgd,bkcd->bskgc", grouped, keys) * self.scale
        hidden = np.arange(keys.shape[2]) > positions[..., None]
        scores[np.broadcast_to(hidden[:, :, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        result: Array = np.einsum("bskgc,bkcd->bskgd", weights, values)
        return result.reshape(batch, seq, -1)


def int8_attentions(lowered: ir.Model) -> dict[str, Int8Attention]:
    """Each attention over an INT8 cache, by the name of its result or of the codes it becomes."""
    found = {}
    for node in [node for node in lowered.graph if node.op_type == "GroupQueryAttention"]:
        past = node.inputs[PAST_KEY]
        if past is None or past.dtype != ir.DataType.INT8:
            continue
        quantize = codes_reader(node.outputs[0])
        result = node.outputs[0] if quantize is None else quantize.outputs[0]
        found[str(result.name)] = _described(node, None if quantize is None else float(array_of(quantize.inputs[1])))
    return found


def _described(node: ir.Node, code_scale: float | None) -> Int8Attention:
    keys, values = (np.asarray(array_of(value), np.float32) for value in node.inputs[SCALES])
    return Int8Attention(
        heads=tuple(str(value.name) for value in node.inputs[HEADS] if value is not None),
        lengths=str(node.inputs[LENGTHS].name),  # type: ignore[union-attr]
        result=str(node.outputs[0].name),
        caches=(str(node.outputs[1].name), str(node.outputs[2].name)),
        num_heads=int_attribute(node, "num_heads"),
        kv_heads=int_attribute(node, "kv_num_heads"),
        scale=float_attribute(node, "scale"),
        cos=array_of(node.inputs[COS]),
        sin=array_of(node.inputs[SIN]),
        scales=(keys, values),
        code_scale=code_scale,
    )


def _by_head(scale: Array) -> tuple[int, ...]:
    """Shape of a cache's scale beside [batch, seq, kv_heads, head_dim]."""
    return () if scale.size == 1 else (scale.shape[1], scale.shape[3])


def _check_written(name: str, cache: Array, unrounded: Array, positions: Array) -> None:
    rows = np.arange(len(positions))[:, None]
    codes = cache.swapaxes(1, 2)[rows, positions]
    apart = float(np.abs(unrounded.clip(*CODES) - codes).max(initial=0))
    if not apart <= NEAREST:
        raise ParityError(
            f"Piston's kernel differs from what it replaced at {name}: a code is {apart:.3g} steps from what it stands "
            f"for; allowed are {NEAREST}. Nothing was written."
        )
