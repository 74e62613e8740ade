"""Layers whose forward is replaced for good so that they export as one operator: rotary tables, norms, linears."""

import functools
import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from piston.export.rotary import RotaryTables


def replace_rotary(module: nn.Module, by_type: dict[str | None, RotaryTables]) -> None:
    """Let a rotary module hand out its whole tables instead of the rows of this step's positions."""
    for kind, pair in by_type.items():
        suffix = "" if kind is None else f"_{kind}"
        module.register_buffer(f"cos{suffix}", pair.cos, persistent=False)
        module.register_buffer(f"sin{suffix}", pair.sin, persistent=False)

    def tables(_: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> tuple[Any, Any]:
        del position_ids
        suffix = "" if layer_type is None else f"_{layer_type}"
        return getattr(module, f"cos{suffix}"), getattr(module, f"sin{suffix}")

    module.forward = tables


def replace_norm(module: nn.Module) -> None:
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


def is_tied(model: nn.Module) -> bool:
    """Whether lm_head and embedding are one tensor."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and embedding.weight.data_ptr() == head.weight.data_ptr()


def replace_linear(module: nn.Module, *, tied: bool) -> None:
    """Let a linear layer export as MatMul [+ Add] on a weight [in, out], a view of the checkpoint's: no copy is made.

    A tied lm_head keeps its layout, so that the file holds the embedding once.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear) and not tied:
        module.weight = nn.Parameter(module.weight.detach().T, requires_grad=False)
    elif not isinstance(module, Conv1D):  # GPT-2 stores [in, out] already
        return

    def forward(x: torch.Tensor) -> torch.Tensor:
        product = x @ module.weight
        bias = _bias_of(module)
        return product if bias is None else product + bias

    module.forward = forward  # type: ignore[method-assign]


def _bias_of(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None
