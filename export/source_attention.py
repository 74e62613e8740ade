"""What encoder-decoders of transformers ask for in a call that is traced: caches, masks, attention of three kinds.

What tells one attention from another is not its name: an attention over keys of the cross states is a cross-attention,
one of a module of the encoder reads the source, every other one the decoder's own tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.onnx import ops
from transformers.cache_utils import EncoderDecoderCache

from piston.core.bundle.interface import PARTS
from piston.core.errors import UnsupportedModelError
from piston.export.operators import IGNORED_OPTIONS
from piston.export.signature import OPSET
from piston.export.step import Step

MASKS = ("causal_mask_function", "bidirectional_mask_function")


@dataclass(slots=True)
class Traced:
    """What the replaced functions need of the call being traced.

    transformers keeps registered functions for good, so they hold this and never the model: gigabytes would stay.
    """

    step: Step | None = None  # of the decoder
    lengths: torch.Tensor | None = None  # of the sources; None where all have one length
    kept: torch.Tensor | None = None  # positions whose logits are computed; None: the result is not used
    cross: list[torch.Tensor] = field(default_factory=list)  # keys and values over the source, in the order of states
    alignment_heads: Sequence[tuple[int, int]] = ()  # (layer, head) of cross-attentions whose weights are an output
    aligned: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # these weights, [batch, 1, seq, source]

    def align(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Keep the weights of the heads of a layer that say where in the source a token looks."""
        for head in [head for at, head in self.alignment_heads if at == layer]:
            scores = query[:, head : head + 1] @ key[:, head : head + 1].transpose(2, 3)
            self.aligned[layer, head] = torch.softmax(scores * scale, dim=-1)

    def positions(self) -> torch.Tensor:
        """Positions of the decoder's tokens, int64 [batch, seq]."""
        assert self.step is not None
        return self.step.position_ids


class _Layer:
    """Keys and values of one cross-attention."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


class CrossCache:
    """Answers transformers' Cache protocol for cross-attentions: gives the states out, or records them."""

    is_compileable = False

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        parts = traced.cross
        self.layers = [_Layer(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object) -> Any:
        """Record the states of a layer; layers come in their order."""
        if len(self.traced.cross) != len(PARTS) * layer_idx:
            raise UnsupportedModelError(f"Layer {layer_idx} does not attend to the source once.")
        self.traced.cross += [key, value]
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position is derived from it."""
        del layer_idx
        return 0


class Uncached:
    """A self-attention cache of tokens that nothing came before."""

    is_compileable = False
    is_sliding = (False,)

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> Any:
        """Keys and values of this call alone."""
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None is cached."""
        del layer_idx
        return 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset of the first)."""
        del layer_idx
        return query_length, 0


class Caches(EncoderDecoderCache):  # type: ignore[misc]  # transformers is untyped here
    """Both caches, as attentions of encoder-decoders ask for them; some models ask it for masks, too."""

    is_sliding = is_linear = is_dummy = (False,)
    is_compileable = False

    def __init__(self, own: Any, cross: CrossCache) -> None:  # the base class takes only its own kinds
        self.self_attention_cache, self.cross_attention_cache = own, cross
        self.is_updated = dict.fromkeys(range(len(cross.layers)), True)

    def __len__(self) -> int:
        return max(len(self.is_updated), 1)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """See the cache of the decoder's own tokens."""
        return int(self.self_attention_cache.get_query_offset(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """See the cache of the decoder's own tokens."""
        found: tuple[int, int] = self.self_attention_cache.get_mask_sizes(query_length, layer_idx)
        return found


def attention_of(traced: Traced, in_encoder: set[int]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention-24 of the three kinds; raises UnsupportedModelError for options it has no form for."""

    def attention(  # noqa: PLR0913, PLR0917 - the interface is transformers'
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        position_bias: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        found = (name for name, given in options.items() if given is not None and given is not False)
        if unknown := sorted(name for name in found if name not in IGNORED_OPTIONS):
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {unknown[0]!r} to attention; no graph form for it."
            )
        assert attention_mask is None
        attributes: dict[str, Any] = {"scale": float(query.shape[-1] ** -0.5 if scaling is None else scaling)}
        lengths, bias = traced.lengths, position_bias
        if any(key is part for part in traced.cross):
            if getattr(module, "has_relative_attention_bias", False):
                raise UnsupportedModelError(f"{type(module).__name__} has a bias by distance to the source.")
            bias = None  # zeros
            if traced.alignment_heads:
                traced.align(module.layer_idx, query, key, attributes["scale"])  # type: ignore[arg-type]
        elif id(module) not in in_encoder:
            assert traced.step is not None
            attributes["is_causal"] = 1
            lengths = traced.step.kv_lengths
        inputs = [query, key, value, bias, None, None, lengths]
        while inputs[-1] is None:
            inputs.pop()
        shape = (*query.shape[:3], value.shape[3])
        output = ops.symbolic("::Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=OPSET)
        return output.transpose(1, 2).contiguous(), None  # (batch, seq, heads, head_dim)

    return attention


def no_mask(*, mask_function: Callable[..., Any], **_: Any) -> None:
    """None: attention knows the lengths. Refuses a mask that is neither causal nor none at all."""
    name = getattr(mask_function, "__name__", "")
    if name not in MASKS:
        raise UnsupportedModelError(f"The attention mask {name!r} is neither causal nor over the whole source.")
