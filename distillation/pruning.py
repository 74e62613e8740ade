"""Layers, channels of MLPs and heads removed: a config and weights of the same architecture that are smaller."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from piston.core.errors import MisuseError
from piston.core.units import parse_count
from piston.distillation.structure import attention_of, head_sizes, layers_path, mlp_of

KINDS = ("layers", "ffn", "heads", "sparsity")


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be left: layers, channels of each MLP, key and value heads of each layer; None for all of them."""

    layers: int | None = None
    ffn: int | None = None
    heads: int | None = None
    sparsity: bool = False  # 2:4

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Goal":
        """Read "layers=24", "ffn=1024", "heads=2" and "sparsity=2:4"; raises MisuseError."""
        found: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if name not in KINDS or not equals:
                raise MisuseError(f"--prune {text!r}: write layers=N, ffn=N, heads=N or sparsity=2:4.")
            if name in found:
                raise MisuseError(f"--prune {name} is given twice; give it once.")
            if name == "sparsity":
                if value != "2:4":
                    raise MisuseError(f"--prune sparsity={value}: only 2:4 is supported.")
                found[name] = True
            elif count := parse_count(value):
                found[name] = count
            else:
                raise MisuseError(f"--prune {text!r}: {value!r} is not a number of 1 or more.")
        return cls(**found)

    def check(self, config: Any) -> None:
        """Raise MisuseError where the model has not more than what is to be left."""
        has = {
            "layers": int(config.num_hidden_layers),
            "ffn": int(getattr(config, "intermediate_size", None) or 0),
            "heads": head_sizes(config)[1],
        }
        for name, count in has.items():
            wanted = getattr(self, name)
            if wanted is not None and wanted >= count:
                what = {"layers": "layers", "ffn": "channels in each MLP", "heads": "key and value heads"}[name]
                raise MisuseError(f"--prune {name}={wanted}: the model has {count} {what}; give a smaller number.")

    @property
    def is_structured(self) -> bool:
        """Whether the student has other shapes than the teacher."""
        return any(count is not None for count in (self.layers, self.ffn, self.heads))


@dataclass(frozen=True, slots=True)
class Kept:
    """What a pruning leaves, each in ascending order: layers, and by number of layer channels and heads."""

    layers: tuple[int, ...]
    channels: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    kv_heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def pruned(model: Any, kept: Kept) -> Any:
    """A new model with what is kept of `model`; weights are copied."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for layer in kept.layers:
        if layer in kept.channels:
            _keep_channels(model, layer, torch.tensor(kept.channels[layer]), state)
        if layer in kept.kv_heads:
            _keep_heads(model, layer, torch.tensor(kept.kv_heads[layer]), state)
    config = _config(model.config, kept)
    student = type(model)._from_config(config, dtype=torch.float32)  # noqa: SLF001
    student.generation_config = copy.deepcopy(model.generation_config)
    student.load_state_dict(_renumbered(state, layers_path(model), kept.layers))
    student.tie_weights()
    return student.eval()


def _keep_channels(model: Any, layer: int, channels: Tensor, state: dict[str, Tensor]) -> None:
    mlp = mlp_of(model, layer)
    for name in mlp.gives:
        _take(state, name, channels, axis=0)
    _take(state, mlp.reads, channels, axis=1)


def _keep_heads(model: Any, layer: int, kv_heads: Tensor, state: dict[str, Tensor]) -> None:
    heads, all_kv_heads, size = head_sizes(model.config)
    attention, group = attention_of(model, layer), heads // all_kv_heads
    of_kv = (kv_heads[:, None] * size + torch.arange(size)).flatten()
    of_query = (kv_heads[:, None] * group * size + torch.arange(group * size)).flatten()
    for name in (attention.key, attention.value):
        _take(state, name, of_kv, axis=0)
    _take(state, attention.query, of_query, axis=0)
    _take(state, attention.output, of_query, axis=1)


def _take(state: dict[str, Tensor], name: str, places: Tensor, axis: int) -> None:
    """Keep places of outputs (axis 0, the bias too) or inputs (axis 1) of a linear."""
    places = places.to(state[f"{name}.weight"].device)
    state[f"{name}.weight"] = state[f"{name}.weight"].index_select(axis, places)
    if axis == 0 and f"{name}.bias" in state:
        state[f"{name}.bias"] = state[f"{name}.bias"].index_select(0, places)


def _config(config: Any, kept: Kept) -> Any:
    """The config of what is kept: lists of one entry a layer lose those of the layers that go."""
    values = config.to_dict()
    count = config.num_hidden_layers
    changed: dict[str, Any] = {
        name: [value[layer] for layer in kept.layers]
        for name, value in values.items()
        if "layer" in name and isinstance(value, list) and len(value) == count
    }
    changed["num_hidden_layers"] = len(kept.layers)
    if kept.channels:
        changed["intermediate_size"] = len(next(iter(kept.channels.values())))
    if kept.kv_heads:
        heads, kv_heads, size = head_sizes(config)
        left = len(next(iter(kept.kv_heads.values())))
        changed |= {"num_key_value_heads": left, "num_attention_heads": left * heads // kv_heads, "head_dim": size}
    if "architectures" in values and not values["architectures"]:
        del values["architectures"]
    return type(config).from_dict(values | changed)


def _renumbered(state: Mapping[str, Tensor], path: str, layers: Sequence[int]) -> dict[str, Tensor]:
    places = {str(layer): str(place) for place, layer in enumerate(layers)}
    result = {}
    for name, value in state.items():
        if not name.startswith(f"{path}."):
            result[name] = value
            continue
        layer, _, rest = name[len(path) + 1 :].partition(".")
        if layer in places:
            result[f"{path}.{places[layer]}.{rest}"] = value
    return result
