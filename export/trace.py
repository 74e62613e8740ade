"""The unmodified transformers module, traced into the canonical graph.

Its attention, cache, rotary and norm calls are answered by ONNX operators for the time of the trace; everything else
is exported as it stands. Nothing here knows an architecture by name.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch import nn

from piston.checkpoint.quiet import quiet
from piston.core.bundle.interface import CacheSpec, decoder_interface
from piston.core.errors import UnsupportedModelError
from piston.export.layers import is_tied, replace_linear, replace_norm, replace_rotary
from piston.export.onnx_program import onnx_of
from piston.export.operators import attention_of, keep_rows, mask_of, rotary_of
from piston.export.rotary import RotaryTables, tables_of
from piston.export.step import Step, StepCache, StepHolder

ATTENTION = "piston"


class CanonicalDecoder(nn.Module):
    """Flat tensors in, flat tensors out, in the order of the signature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.holder = StepHolder()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        write_indices: torch.Tensor,
        kv_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """One step; shapes in signature.py."""
        self.holder.step = Step(position_ids, write_indices, kv_lengths, past[0].shape[2])
        cache = StepCache(past, self.holder.step)
        logits = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_positions,
        ).logits
        missing = [index // 2 for index, present in enumerate(cache.present) if present is None]
        if missing:
            raise UnsupportedModelError(f"Layer {missing[0]} never wrote its cache; it is not an attention layer.")
        return (logits, *cache.present)


def trace(model: nn.Module, cache: CacheSpec, positions: int) -> ir.Model:
    """Trace a float32 model; replaces parts of it for good, so take reference outputs before.

    Raises:
        UnsupportedModelError: the model does something the canonical graph has no form for.
    """
    decoder, interface = CanonicalDecoder(model).eval(), decoder_interface(cache, vocab_size=0)
    with quiet(), torch.no_grad(), _replaced(decoder, tables_of(model, positions)):
        return onnx_of(decoder, interface.input_names, interface.output_names, _example(cache), _dynamic_shapes(cache))


def _example(cache: CacheSpec) -> dict[str, Any]:
    # Sizes differ from one another and from 0 and 1, so that none is taken for a constant or for another.
    batch, seq, capacity, kept = 2, 5, 11, 3
    return {
        "input_ids": torch.zeros(batch, seq, dtype=torch.int64),
        "position_ids": torch.arange(seq).expand(batch, seq).clone(),
        "write_indices": torch.zeros(batch, dtype=torch.int64),
        "kv_lengths": torch.full((batch,), seq),
        "logits_positions": torch.zeros(batch, kept, dtype=torch.int64),
        "past": [torch.zeros(state.sizes(batch, capacity)) for state in cache.states],
    }


def _dynamic_shapes(cache: CacheSpec) -> dict[str, Any]:
    dim = torch.export.Dim
    batch, seq, capacity, kept = dim("batch"), dim("seq"), dim("capacity"), dim("k")
    return {
        "input_ids": {0: batch, 1: seq},
        "position_ids": {0: batch, 1: seq},
        "write_indices": {0: batch},
        "kv_lengths": {0: batch},
        "logits_positions": {0: batch, 1: kept},
        "past": [{0: batch, 2: capacity}] * len(cache.states),
    }


@contextmanager
def _replaced(decoder: CanonicalDecoder, tables: dict[nn.Module, dict[str | None, RotaryTables]]) -> Iterator[None]:
    """Answer attention, masks, rotary embeddings and norms with ONNX operators."""
    from transformers import AttentionInterface, AttentionMaskInterface

    model, current = decoder.model, decoder.holder.current
    AttentionInterface.register(ATTENTION, attention_of(current))
    AttentionMaskInterface.register(ATTENTION, mask_of(current))
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    interleaved = {pair.interleaved for by_type in tables.values() for pair in by_type.values()}
    if len(interleaved) > 1:
        raise UnsupportedModelError("The model mixes half-split and interleaved rotary embeddings.")
    for module, by_type in tables.items():
        replace_rotary(module, by_type)
    for module in model.modules():
        replace_norm(module)
        replace_linear(module, tied=module is model.get_output_embeddings() and is_tied(model))  # type: ignore[operator]
    with ExitStack() as stack:
        replacements: dict[str, Callable[..., Any]] = {
            "apply_rotary_pos_emb": rotary_of(current, interleaved=interleaved == {True}),
            "slice_logits_to_keep": keep_rows,
        }
        source = sys.modules[type(model).__module__]
        for name, function in replacements.items():
            if hasattr(source, name):
                stack.enter_context(mock.patch.object(source, name, function))
        yield
    decoder.holder.step = None
