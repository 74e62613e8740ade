"""The unmodified transformers module, traced into the canonical graph.

Its attention, cache, rotary and norm calls are answered by ONNX operators for the time of the trace; everything else
is exported as it stands. Nothing here knows an architecture by name.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional
from torch.onnx import ops

from piston.export.quiet import quiet
from piston.export.rotary import RotaryTables, tables_of
from piston.export.signature import OPSET, Signature
from piston.runtime.errors import UnsupportedModelError
from piston.runtime.manifest import CacheSpec

ATTENTION = "piston"
IGNORED_OPTIONS = {"dropout", "sliding_window", "position_ids", "use_cache", "output_attentions", "is_causal"}


@dataclass(slots=True)
class Step:
    """The step being traced: what the replaced functions need beside their arguments."""

    position_ids: torch.Tensor
    write_indices: torch.Tensor
    kv_lengths: torch.Tensor
    capacity: Any  # a symbolic size while tracing


class StepCache:
    """Answers transformers' Cache protocol: `update` scatters into the preallocated cache of one layer."""

    is_compileable = False

    def __init__(self, past: list[torch.Tensor], step: Step) -> None:
        self.past = past
        self.step = step
        self.present: list[torch.Tensor | None] = [None] * len(past)
        self.is_sliding = [False] * (len(past) // 2)  # every layer keeps the whole context; windows are masks

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values; both [batch, kv_heads, seq, head_dim]."""
        scattered = []
        for slot, new in ((2 * layer_idx, key), (2 * layer_idx + 1, value)):
            past = self.past[slot]
            if self.present[slot] is not None or new.shape[1] != past.shape[1] or new.shape[3] != past.shape[3]:
                raise UnsupportedModelError(
                    f"Layer {layer_idx} does not keep one key and one value of the model's shape."
                )
            present = ops.symbolic(
                "::TensorScatter",
                (past, new, self.step.write_indices),
                {"axis": -2, "mode": "linear"},
                dtype=new.dtype,
                shape=past.shape,
                version=OPSET,
            )
            self.present[slot] = present
            scattered.append(present)
        return scattered[0], scattered[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position is derived from it: position_ids are given."""
        del layer_idx
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Unused by our mask."""
        del layer_idx
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset of the first)."""
        del query_length, layer_idx
        return self.step.capacity, 0


class CanonicalDecoder(nn.Module):
    """Flat tensors in, flat tensors out, in the order of the signature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.step: Step | None = None

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
        self.step = Step(position_ids, write_indices, kv_lengths, past[0].shape[2])
        cache = StepCache(past, self.step)
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
        return (logits, *cache.present)  # type: ignore[arg-type]


def trace(model: nn.Module, cache: CacheSpec, positions: int) -> ir.Model:
    """Trace a float32 model; replaces parts of it for good, so take reference outputs before.

    Raises:
        UnsupportedModelError: the model does something the canonical graph has no form for.
    """
    decoder = CanonicalDecoder(model).eval()
    with quiet(), torch.no_grad(), _replaced(decoder, tables_of(model, positions)):
        program = torch.onnx.export(
            decoder,
            (),
            kwargs=_example(cache),
            input_names=Signature(cache).inputs,
            output_names=Signature(cache).outputs,
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            dynamic_shapes=_dynamic_shapes(cache),
            optimize=False,  # its constant folding would hold a second copy of every weight; passes/ does better
            verbose=False,
        )
    assert program is not None
    return program.model


def _example(cache: CacheSpec) -> dict[str, Any]:
    # Sizes differ from one another and from 0 and 1, so that none is taken for a constant or for another.
    batch, seq, capacity, kept = 2, 5, 11, 3
    shape = (batch, cache.num_kv_heads, capacity, cache.head_dim)
    return {
        "input_ids": torch.zeros(batch, seq, dtype=torch.int64),
        "position_ids": torch.arange(seq).expand(batch, seq).clone(),
        "write_indices": torch.zeros(batch, dtype=torch.int64),
        "kv_lengths": torch.full((batch,), seq),
        "logits_positions": torch.zeros(batch, kept, dtype=torch.int64),
        "past": [torch.zeros(shape) for _ in range(2 * cache.num_layers)],
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
        "past": [{0: batch, 2: capacity}] * (2 * cache.num_layers),
    }


@contextmanager
def _replaced(decoder: CanonicalDecoder, tables: dict[nn.Module, dict[str | None, RotaryTables]]) -> Iterator[None]:
    """Answer attention, masks, rotary embeddings and norms with ONNX operators."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def current() -> Step:
        assert decoder.step is not None
        return decoder.step

    model = decoder.model
    AttentionInterface.register(ATTENTION, _attention(current))
    AttentionMaskInterface.register(ATTENTION, _mask(current))
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    interleaved = {pair.interleaved for by_type in tables.values() for pair in by_type.values()}
    if len(interleaved) > 1:
        raise UnsupportedModelError("The model mixes half-split and interleaved rotary embeddings.")
    for module, by_type in tables.items():
        _replace_rotary(module, by_type)
    for module in model.modules():
        _replace_norm(module)
        _replace_linear(module, tied=module is model.get_output_embeddings() and _is_tied(model))  # type: ignore[operator]
    with ExitStack() as stack:
        replacements: dict[str, Callable[..., Any]] = {
            "apply_rotary_pos_emb": _rotary(current, interleaved=interleaved == {True}),
            "slice_logits_to_keep": _keep,
        }
        source = sys.modules[type(model).__module__]
        for name, function in replacements.items():
            if hasattr(source, name):
                stack.enter_context(mock.patch.object(source, name, function))
        yield


def _attention(current: Callable[[], Step]) -> Callable[..., tuple[torch.Tensor, None]]:
    def attention(
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
            inputs = (query, key, value, None, None, None, current().kv_lengths)
        else:
            inputs = (query, key, value, attention_mask, None, None, None)
        shape = (*query.shape[:3], value.shape[3])
        output = ops.symbolic("::Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=OPSET)
        return output.transpose(1, 2).contiguous(), None  # (batch, seq, heads, head_dim)

    return attention


def _mask(current: Callable[[], Step]) -> Callable[..., torch.Tensor | None]:
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


def _rotary(current: Callable[[], Step], *, interleaved: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
    def rotate_both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, ...]:
        if unsqueeze_dim != 1:
            raise UnsupportedModelError("Rotary embedding on [batch, seq, heads, head_dim] has no graph form.")
        rotary_dim = 2 * cos.shape[-1]
        partial = {} if rotary_dim == q.shape[-1] else {"rotary_embedding_dim": rotary_dim}
        attributes = {"interleaved": int(interleaved), **partial}
        position_ids = current().position_ids
        return tuple(
            ops.symbolic(
                "::RotaryEmbedding", (x, cos, sin, position_ids), attributes, dtype=x.dtype, shape=x.shape, version=23
            )
            for x in (q, k)
        )

    return rotate_both


def _replace_rotary(module: nn.Module, by_type: dict[str | None, RotaryTables]) -> None:
    for kind, pair in by_type.items():
        suffix = "" if kind is None else f"_{kind}"
        module.register_buffer(f"cos{suffix}", pair.cos, persistent=False)
        module.register_buffer(f"sin{suffix}", pair.sin, persistent=False)

    def tables(_: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> tuple[Any, Any]:
        del position_ids
        suffix = "" if layer_type is None else f"_{layer_type}"
        return getattr(module, f"cos{suffix}"), getattr(module, f"sin{suffix}")

    module.forward = tables


def _replace_norm(module: nn.Module) -> None:
    """Let a norm of transformers' own export as one operator, if it is one: its answer on random input decides."""
    if isinstance(module, nn.LayerNorm) or not type(module).__name__.endswith("Norm"):
        return
    weight = getattr(module, "weight", None)
    epsilon = next(
        (getattr(module, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(module, name)), None
    )
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return
    probe = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    expected = module(probe)
    norms = {
        "rms": lambda x, scale: functional.rms_norm(x, scale.shape, scale, epsilon),
        "layer": lambda x, scale: functional.layer_norm(x, scale.shape, scale, _bias_of(module), epsilon),
    }
    scales = (weight, weight + 1.0)  # Gemma stores the distance from one
    for norm, scale in itertools.product(norms.values(), scales):
        if torch.allclose(norm(probe, scale), expected, atol=1e-5, rtol=1e-5):
            module.weight = nn.Parameter(scale.detach().clone(), requires_grad=False)
            module.forward = functools.partial(lambda x, norm: norm(x, module.weight), norm=norm)
            return


def _is_tied(model: nn.Module) -> bool:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and embedding.weight.data_ptr() == head.weight.data_ptr()


def _replace_linear(module: nn.Module, *, tied: bool) -> None:
    """Let a linear layer export as MatMul [+ Add] on a weight [in, out], a view of the checkpoint's: no copy is made.

    A tied lm_head keeps its layout, so that the file holds the embedding once.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):  # GPT-2 stores [in, out] already
        module.forward = lambda x: functools.reduce(torch.add, [x @ module.weight, *_bias(module)])
    elif isinstance(module, nn.Linear) and not tied:
        module.weight = nn.Parameter(module.weight.detach().T, requires_grad=False)
        module.forward = lambda x: functools.reduce(torch.add, [x @ module.weight, *_bias(module)])


def _bias(module: nn.Module) -> list[torch.Tensor]:
    bias = _bias_of(module)
    return [] if bias is None else [bias]


def _bias_of(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def _keep(hidden_states: torch.Tensor, logits_to_keep: torch.Tensor) -> torch.Tensor:
    """Rows of hidden_states [batch, seq, hidden] at logits_to_keep [batch, k]."""
    shape = (*logits_to_keep.shape, hidden_states.shape[-1])
    inputs = (hidden_states, logits_to_keep[..., None])
    return ops.symbolic("::GatherND", inputs, {"batch_dims": 1}, dtype=hidden_states.dtype, shape=shape, version=13)
