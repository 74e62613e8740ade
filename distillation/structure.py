"""Where the parts of a decoder of transformers are: its layers, its heads and the channels of its MLPs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from piston.core.errors import UnsupportedModelError

HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Mlp:
    """The linears of a layer's MLP, by path: those that give its channels, and the one that reads them."""

    gives: tuple[str, ...]
    reads: str


@dataclass(frozen=True, slots=True)
class Attention:
    """The linears of a layer's attention, by path."""

    query: str
    key: str
    value: str
    output: str


def layers_path(model: Any) -> str:
    """The path of the list of layers, such as "model.layers".

    Raises:
        UnsupportedModelError: there is none of as many entries as the config has layers.
    """
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return str(name)
    raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} layers; it cannot be pruned.")


def layers_of(model: Any) -> nn.ModuleList:
    """The layers, in order."""
    return model.get_submodule(layers_path(model))  # type: ignore[no-any-return]


def linears_of(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Path and module of every linear but the lm_head, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != HEAD:
            yield name, module


def mlp_of(model: Any, layer: int) -> Mlp:
    """The MLP of a layer, recognised by the size of its channels.

    Raises:
        UnsupportedModelError: it has another form, such as gate and up in one matrix.
    """
    width = getattr(model.config, "intermediate_size", None)
    inside = _inside(model, layer)
    gives = tuple(name for name, module in inside if module.out_features == width and "attn" not in name)
    reads = [name for name, module in inside if module.in_features == width and "attn" not in name]
    if width is None or not gives or len(reads) != 1:
        raise UnsupportedModelError(
            f"The MLP of layer {layer} of {type(model).__name__} is not made of linears of intermediate_size ({width}) "
            "channels; its channels cannot be pruned. Prune layers instead (--prune layers=N)."
        )
    return Mlp(gives, reads[0])


def attention_of(model: Any, layer: int) -> Attention:
    """The attention of a layer.

    Raises:
        UnsupportedModelError: it has another form, such as query, key and value in one matrix.
    """
    found = {name.rpartition(".")[2]: name for name, _ in _inside(model, layer)}
    names = [found.get(part) for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    if any(name is None for name in names):
        raise UnsupportedModelError(
            f"The attention of {type(model).__name__} has no q_proj, k_proj, v_proj and o_proj; its heads cannot be "
            "pruned. Prune layers instead (--prune layers=N)."
        )
    return Attention(*(str(name) for name in names))


def head_sizes(config: Any) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the size of a head."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _inside(model: Any, layer: int) -> list[tuple[str, nn.Linear]]:
    prefix = f"{layers_path(model)}.{layer}."
    return [(name, module) for name, module in linears_of(model) if name.startswith(prefix)]
