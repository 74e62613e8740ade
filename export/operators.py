"""ONNX operators in place of what a transformers module calls: attention, mask, rotation, choice of rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.onnx import ops

from piston.core.errors import UnsupportedModelError
from piston.export.signature import OPSET
from piston.export.step import Step

# What modules tell attention that changes nothing here: the window comes with the mask, causality with its absence.
IGNORED_OPTIONS = {"dropout", "sliding_window", "position_ids", "use_cache", "output_attentions", "is_causal"}


def attention_of(current: Callable[[], Step]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention-24 on the whole cache; raises UnsupportedModelError for options it has no form for, such as sinks."""

    def attention(  # noqa: PLR0913, PLR0917 - the interface is transformers'
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        if unknown := sorted(
            name for name, given in options.items() if given is not None and name not in IGNORED_OPTIONS
        ):
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {unknown[0]!r} to attention; no graph form for it."
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attributes: dict[str, Any] = {"scale": float(scale)}
        if softcap:
            attributes["softcap"] = float(softcap)
        if attention_mask is None:
            attributes["is_causal"] = 1
        lengths = current().kv_lengths if attention_mask is None else None
        inputs = (query, key, value, attention_mask, None, None, lengths)
        shape = (*query.shape[:3], value.shape[3])
        output = ops.symbolic("::Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=OPSET)
        return output.transpose(1, 2).contiguous(), None  # (batch, seq, heads, head_dim)

    return attention


def mask_of(current: Callable[[], Step]) -> Callable[..., torch.Tensor | None]:
    """None where the mask is plainly causal, else the boolean window mask; told apart by asking the mask function."""

    def mask(*, mask_function: Callable[..., Any], config: Any, **_: Any) -> torch.Tensor | None:
        window = _window_of(mask_function, getattr(config, "sliding_window", None))
        if window is None:
            return None
        step = current()
        keys = torch.arange(step.capacity)
        queries = step.position_ids[:, None, :, None]  # (batch, 1, seq, 1); slot and position coincide
        return (keys <= queries) & (keys > queries - window)  # (batch, 1, seq, capacity)

    return mask


def _window_of(mask_function: Callable[..., Any], window: int | None) -> int | None:
    name = getattr(mask_function, "__name__", "")
    if name == "causal_mask_function":
        return None
    if window is None or name != "and_mask":
        raise UnsupportedModelError(f"Attention mask {name!r} is neither causal nor a sliding window.")
    return int(window)


def rotary_of(current: Callable[[], Step], *, interleaved: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
    """RotaryEmbedding-23 on query and key [batch, heads, seq, head_dim], with half-width tables as cos and sin."""

    def rotate_both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, ...]:
        if unsqueeze_dim != 1:
            raise UnsupportedModelError("Rotary embedding on [batch, seq, heads, head_dim] has no graph form.")
        rotary_dim = 2 * cos.shape[-1]
        partial = {} if rotary_dim == q.shape[-1] else {"rotary_embedding_dim": rotary_dim}
        attributes: dict[str, Any] = {"interleaved": int(interleaved), **partial}
        position_ids = current().position_ids
        return tuple(
            ops.symbolic(
                "::RotaryEmbedding", (x, cos, sin, position_ids), attributes, dtype=x.dtype, shape=x.shape, version=23
            )
            for x in (q, k)
        )

    return rotate_both


def keep_rows(hidden_states: torch.Tensor, logits_to_keep: torch.Tensor) -> torch.Tensor:
    """Rows of hidden_states [batch, seq, hidden] at logits_to_keep [batch, k]."""
    shape = (*logits_to_keep.shape, hidden_states.shape[-1])
    inputs = (hidden_states, logits_to_keep[..., None])
    return ops.symbolic("::GatherND", inputs, {"batch_dims": 1}, dtype=hidden_states.dtype, shape=shape, version=13)
