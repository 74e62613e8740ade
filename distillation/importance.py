"""How much each part of a model matters, by measurement: what its answers lose without a layer, a channel, a head.

Layers: the KL divergence of the answers when the layer is skipped. Channels of an MLP and heads: the mean square of
what they add to the residual stream (Muralidharan et al., "Compact Language Models via Pruning and Knowledge
Distillation", 2024, rank by activations too).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from piston.core.console import Progress
from piston.distillation.loss import kl_divergence
from piston.distillation.pruning import Goal, Kept
from piston.distillation.structure import attention_of, head_sizes, layers_of, mlp_of

MOST_ROWS = 4  # that layers are measured on: each layer costs a pass over them


@dataclass(frozen=True, slots=True)
class Ranking:
    """What was measured: KL in nats without each layer; by layer the importance of channels and of heads."""

    layers: Mapping[int, float] = field(default_factory=dict)
    channels: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    kv_heads: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    def kept(self, goal: Goal, num_layers: int) -> Kept:
        """The parts that matter most."""
        layers = tuple(range(num_layers))
        if goal.layers is not None:
            layers = _largest(np.array([self.layers[layer] for layer in layers]), goal.layers)
        channels = {} if goal.ffn is None else {n: _largest(self.channels[n], goal.ffn) for n in layers}
        heads = {} if goal.heads is None else {n: _largest(self.kv_heads[n], goal.heads) for n in layers}
        return Kept(layers, channels, heads)

    def to_json(self) -> dict[str, Any]:
        """Layers by number; channels and heads as lists by layer."""
        return {
            "layers": {str(layer): value for layer, value in self.layers.items()},
            "ffn": {str(layer): [float(value) for value in values] for layer, values in self.channels.items()},
            "heads": {str(layer): [float(value) for value in values] for layer, values in self.kv_heads.items()},
        }


@torch.no_grad()
def rank(model: Any, goal: Goal, rows: NDArray[np.int64], progress: Progress) -> Ranking:
    """Measure what `goal` is about to remove, on rows int64 [rows, tokens]."""
    layers = layer_importance(model, rows[:MOST_ROWS], progress) if goal.layers is not None else {}
    kinds: dict[str, Mapping[int, NDArray[np.float32]]] = {}
    if goal.ffn is not None or goal.heads is not None:
        kinds = _activations(model, goal, rows, progress)
    return Ranking(layers, kinds.get("ffn", {}), kinds.get("heads", {}))


def layer_importance(model: Any, rows: NDArray[np.int64], progress: Progress) -> dict[int, float]:
    """By layer the mean KL divergence in nats from the whole model when it is skipped."""
    ids = [torch.from_numpy(row[None]).to(model.device) for row in rows]
    exact = [model(row, use_cache=False).logits[0] for row in ids]
    layers, found = layers_of(model), {}
    for number, layer in enumerate(layers):
        progress.step("skipping each layer", number, len(layers))
        with _skipped(layer):
            losses = [
                kl_divergence(logits, model(row, use_cache=False).logits[0])
                for row, logits in zip(ids, exact, strict=True)
            ]
        found[number] = float(torch.stack(losses).mean())
    return found


def _activations(
    model: Any, goal: Goal, rows: NDArray[np.int64], progress: Progress
) -> dict[str, Mapping[int, NDArray[np.float32]]]:
    count = model.config.num_hidden_layers
    read: dict[tuple[str, int], Any] = {}
    if goal.ffn is not None:
        read |= {("ffn", layer): model.get_submodule(mlp_of(model, layer).reads) for layer in range(count)}
    if goal.heads is not None:
        read |= {("heads", layer): model.get_submodule(attention_of(model, layer).output) for layer in range(count)}
    sums: dict[tuple[str, int], Tensor] = {}
    with inputs_of(read, sums):
        for done, row in enumerate(rows):
            progress.step("measuring activations", done, len(rows))
            model(torch.from_numpy(row[None]).to(model.device), use_cache=False)
    found: dict[str, dict[int, NDArray[np.float32]]] = {"ffn": {}, "heads": {}}
    for (kind, layer), squares in sums.items():
        added = squares * read[kind, layer].weight.float().square().sum(dim=0)
        if kind == "heads":
            added = added.reshape(head_sizes(model.config)[1], -1).sum(dim=1)
        found[kind][layer] = added.cpu().numpy()
    return dict(found)


@contextlib.contextmanager
def inputs_of(modules: Mapping[Any, nn.Module], sums: dict[Any, Tensor]) -> Iterator[None]:
    """Sum the squares of what linears read, by channel."""

    def summing(key: Any) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].float().square().flatten(0, -2).sum(dim=0)
            sums[key] = sums[key] + squares if key in sums else squares

        return add

    handles = [module.register_forward_pre_hook(summing(key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _skipped(layer: nn.Module) -> Iterator[None]:
    """Let a layer give what it reads."""

    def give_input(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        read = inputs[0] if inputs else named["hidden_states"]
        return (read, *output[1:]) if isinstance(output, tuple) else read

    handle = layer.register_forward_hook(give_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _largest(values: Sequence[float] | NDArray[np.floating], count: int) -> tuple[int, ...]:
    """Places of the largest, ascending; of equal ones the first."""
    order = np.argsort(-np.asarray(values), kind="stable")[:count]
    return tuple(int(place) for place in np.sort(order))
