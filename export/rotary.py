"""Rotary embeddings as cosine and sine tables, one pair per frequency set, taken from the checkpoint's own module.

The tables are computed by the model's code, so every RoPE type whose angles depend on the position alone is exact.
Types whose frequencies depend on the length of the sequence are pinned (longrope) or limited (dynamic).
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError

STATIC_TYPES = ("default", "linear", "llama3", "yarn")
SUPPORTED_TYPES = (*STATIC_TYPES, "longrope", "dynamic")
LARGEST_TABLE = 1 << 29  # bytes of cosines and sines in float32: a million positions of a head of 128

Apply = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Half-width tables, float32 [positions, rotary_dim / 2] each."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool  # pairs are (2i, 2i+1) instead of (i, i + rotary_dim/2)


def rope_types(config: Any) -> dict[str | None, dict[str, Any]]:
    """RoPE parameters by layer type; the key is None where all layers share one set."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters and all(isinstance(value, dict) for value in parameters.values()):
        return dict(parameters)
    return {None: parameters} if parameters else {}


def positions_of(config: Any, context: int | None) -> int:
    """How many positions to export: `context`, else what the checkpoint was trained for.

    Raises:
        UnsupportedModelError: a RoPE type without a static table.
        CheckpointError: a config whose positions would need a table beyond LARGEST_TABLE, or whose longrope begins at
            no number of positions.
        MisuseError: a context beyond what the type is exact for, or one that would.
    """
    trained = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)
    for parameters in rope_types(config).values():
        kind = parameters.get("rope_type", "default")
        if kind not in SUPPORTED_TYPES:
            raise UnsupportedModelError(
                f"RoPE type {kind!r} is not supported; supported: {', '.join(SUPPORTED_TYPES)}."
            )
        if kind == "longrope":
            # transformers switches all positions to the long factors once a sequence passes the original context.
            # One static table cannot do both: the context asked for decides which set is exported.
            original = parameters.get("original_max_position_embeddings") or trained
            if not isinstance(original, int | float) or original < 1:
                raise CheckpointError(
                    f"original_max_position_embeddings in the config's rotary parameters is {original!r}; it must be "
                    "an integer of 1 or more."
                )
            trained = min(trained, int(original))
        if kind == "dynamic" and context is not None and context > trained:
            raise MisuseError(
                f"--context {context} is beyond the {trained} positions for which dynamic RoPE has one set of "
                f"frequencies; past them every cached key would have to be rotated again. Use --context {trained}."
            )
    if not rope_types(config) and context is not None and context > trained:
        raise MisuseError(
            f"--context {context} is beyond the {trained} positions the checkpoint has learned embeddings for."
        )
    positions = context or trained
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rope_types(config) and (size := positions * head_dim * 4) > LARGEST_TABLE:
        fits = f"at most {LARGEST_TABLE // (4 * head_dim):,} fit; give --context N"
        if context is not None:
            raise MisuseError(f"--context {context} would need a rotary table of {size / 1e9:,.1f} GB: {fits}.")
        raise CheckpointError(
            f"The config says {trained:,} positions, whose rotary table would take {size / 1e9:,.1f} GB: {fits}."
        )
    return positions


def tables_of(model: nn.Module, positions: int) -> dict[nn.Module, dict[str | None, RotaryTables]]:
    """Evaluate every rotary module of `model` at positions 0 .. positions-1, before anything is replaced.

    Raises:
        UnsupportedModelError: a rotary module or function of an unknown convention.
    """
    apply = _apply_function(model)
    tables = {}
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            kinds = list(rope_types(module.config)) if hasattr(module, "config") else [None]
            tables[module] = {kind: _tables(module, kind, positions, apply) for kind in kinds or [None]}
    return tables


def _tables(module: nn.Module, kind: str | None, positions: int, apply: Apply) -> RotaryTables:
    position_ids = torch.arange(positions)[None]
    arguments = (position_ids,) if kind is None else (position_ids, kind)
    cos, sin = module(torch.zeros(1, 1, 1), *arguments)  # (1, positions, rotary_dim)
    half = cos.shape[-1] // 2
    layouts = (slice(0, half), slice(0, None, 2))  # frequencies repeated as a block, or each twice in a row
    for layout, interleaved, sign in itertools.product(layouts, (False, True), (1.0, -1.0)):
        columns = (cos[0, :, layout].contiguous(), sign * sin[0, :, layout].contiguous())
        candidate = RotaryTables(*columns, interleaved)
        if _agrees(candidate, apply, cos, sin):
            return candidate
    name = type(module).__name__
    raise UnsupportedModelError(f"{name} rotates in a way that is neither half-split nor interleaved.")


def _agrees(tables: RotaryTables, apply: Apply, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether the checkpoint's own function rotates a random query as the ONNX operator would with these tables."""
    seq = min(cos.shape[1], 64)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, seq, cos.shape[-1], generator=generator)
    expected, _ = apply(query, query.clone(), cos[:, :seq], sin[:, :seq])
    if expected.shape != query.shape:
        return False
    actual = rotate(query, tables.cos[:seq], tables.sin[:seq], interleaved=tables.interleaved)
    return bool(torch.allclose(expected, actual, atol=1e-4, rtol=1e-4))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """RotaryEmbedding-23 on x [batch, heads, seq, rotary_dim] with tables [seq, rotary_dim / 2]."""
    if interleaved:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _apply_function(model: nn.Module) -> Apply:
    return getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", _no_apply)


def _no_apply(*_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raise UnsupportedModelError("The model has a rotary module but no apply_rotary_pos_emb function.")
