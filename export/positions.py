"""Positions of encoder-decoders as tables: embeddings of positions, and biases of T5 by the distance of two tokens.

Both tables are evaluated by the model's own modules, so their formulas are not repeated here, and a step only gathers.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from piston.core.errors import MisuseError, UnsupportedModelError

Positions = Callable[[], torch.Tensor]  # int64 [batch or 1, seq], only while tracing
PROBED = 3  # an offset that tells a table from a formula of the length


def is_position_embedding(name: str, module: nn.Module) -> bool:
    """Whether it is a module of transformers that embeds positions by itself, not a plain table."""
    return name.endswith("embed_positions") and type(module) is not nn.Embedding


def replace_positions(module: nn.Module, size: int, positions: Positions | None) -> None:
    """Let a module that embeds positions read a table, float32 [size, hidden], at `positions`; None: at 0, 1, ...

    Raises:
        MisuseError: there are too few positions to tell.
        UnsupportedModelError: what it returns does not depend on the position alone.
    """
    if size <= PROBED:
        raise MisuseError(
            f"{size} positions are too few for {type(module).__name__}; export with --context {PROBED + 1} or more."
        )
    table = _probe(module, size)
    if not torch.equal(_probe(module, size - PROBED, PROBED), table[PROBED:]):
        raise UnsupportedModelError(f"{type(module).__name__} is not a table of positions; no graph form for it.")
    module.register_buffer("table", table, persistent=False)

    def forward(tokens: Any, *_: object, **__: object) -> torch.Tensor:
        shape = tokens if isinstance(tokens, tuple) else tokens.shape
        index = torch.arange(shape[1])[None] if positions is None else positions()
        return functional.embedding(index, module.table)  # type: ignore[arg-type]

    module.forward = forward


def replace_bias(module: nn.Module, positions: Positions | None) -> None:
    """Let T5's attention read its bias from a table by distance, float32 [distances, heads].

    Args:
        module: its `compute_bias` is replaced.
        positions: of the queries of a decoder, whose keys are at 0, 1, ...; None: of an encoder, both at 0, 1, ...

    Raises:
        UnsupportedModelError: the bias has no largest distance from which on it stays the same.
    """
    size = 2 * int(module.relative_attention_max_distance)  # type: ignore[arg-type]
    whole = module.compute_bias(size, size)[0].detach()  # type: ignore[operator]  # [heads, queries, keys]
    before = whole[:, -1].flip(1).T  # a query sees keys 0, 1, ... before it
    behind = whole[:, 0].T if positions is None else before[:1]
    furthest = size // 2
    if not all((part[furthest:] == part[-1]).all() for part in (before, behind)):
        raise UnsupportedModelError(f"The bias of {type(module).__name__} has no largest distance.")
    table = before[: furthest + 1]
    if positions is None:
        table = torch.cat([behind[1 : furthest + 1].flip(0), table])
    module.register_buffer("distance_bias", table.contiguous(), persistent=False)

    def compute_bias(query_length: Any, key_length: Any, *_: object, **__: object) -> torch.Tensor:
        queries = torch.arange(query_length)[None] if positions is None else positions()
        distance = queries[..., None] - torch.arange(key_length)
        lowest = 0 if positions is not None else -furthest
        index = distance.clamp(lowest, furthest) - lowest
        return functional.embedding(index, module.distance_bias).permute(0, 3, 1, 2)  # type: ignore[arg-type]

    module.compute_bias = compute_bias  # type: ignore[assignment]


@torch.no_grad()
def _probe(module: nn.Module, size: int, offset: int = 0) -> torch.Tensor:
    """Its embeddings [size, hidden] of the positions from `offset` on."""
    parameters = inspect.signature(module.forward).parameters
    tokens: Any = torch.Size((1, size))
    if "input_ids_shape" not in parameters:
        padding = getattr(module, "padding_idx", None)
        tokens = torch.full((1, size), 1 if padding is None else int(padding) + 1)
    found = module(tokens, past_key_values_length=offset)
    return found.reshape(size, -1).detach().clone()  # type: ignore[no-any-return]
