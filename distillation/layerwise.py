"""Training layer by layer: each layer of the student learns to give what the teacher's layer gives.

A layer reads what the student's layers before it give, and is trained towards what the teacher's layer gives of the
teacher's own input, so it also makes up for what the layers before it changed (Li et al., "BRECQ", ICLR 2021; Chen et
al., "EfficientQAT", 2024). Every token says something about every weight of a layer, which asks for less data than the
answers of the whole model do.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from piston.core.console import Progress
from piston.core.errors import Error
from piston.distillation.loss import hidden_distance
from piston.distillation.rounding import StudentLinear
from piston.distillation.source import batch
from piston.distillation.structure import layers_of
from piston.distillation.training import BETAS, Run, Trainer, rate_at

MOST_VALUES = 1 << 27  # of the hidden states that are kept, float32; there are three of them: 512 MiB each


class LayerTrainer(Trainer):
    """Trains the layers of a student one after another; its state is written between layers."""

    def __init__(self, *arguments: Any, model: nn.Module) -> None:
        """As a Trainer; `model` is the teacher's, with a layer for each of the student's."""
        self.own, self.theirs = layers_of(arguments[0]), layers_of(model)
        self.begun, self.layer_step = 0.0, 0  # of this layer: seconds of training before it, its steps
        super().__init__(*arguments)
        values = self.data.train.shape[1] * self.student.get_input_embeddings().weight.shape[1]
        self.fitting = max(self.options.rows, MOST_VALUES // values)
        self.ids = torch.from_numpy(self.data.train[self._rows()])
        self.passes, self.pass_seconds = 0.0, 0.0  # of layers over the rows, besides the training
        self.calls = _calls(self.student, self.own, self.ids[:1].to(self.student.device))

    def _rows(self) -> NDArray[np.int64]:
        """The numbers of the rows whose hidden states are computed: those that fit, and no more than are trained on."""
        count, options = len(self.data.train), self.options
        read = count if options.steps is None else options.steps * options.rows
        return batch(count, 0, max(options.rows, min(count, self.fitting, read)), options.seed)

    @property
    def layer_fraction(self) -> float:
        """Of the training of the present layer that is over."""
        steps, minutes = self.options.steps, self.options.minutes
        by_steps = 0.0 if steps is None else self.layer_step / steps if steps else 1.0
        seconds = self.run.seconds - self.begun
        by_time = 0.0 if minutes is None else seconds * len(self.own) / (60 * minutes)
        return min(1.0, max(by_steps, by_time))

    @property
    def fraction(self) -> float:
        """Of the training that is over, 0 to 1."""
        if self.run.layers == len(self.own) or self.options.steps == 0:
            return 1.0
        return (self.run.layers + self.layer_fraction) / len(self.own)

    @property
    def epochs(self) -> float:
        """How often each layer read the data."""
        return super().epochs / len(self.own)

    def train(self, key: str, progress: Progress, remark: Callable[[str], None]) -> Run:
        """Train each layer, behind `begin`; the state is written between layers, every few minutes, and at the end.

        Raises:
            Error: the loss is not finite, or the disk is full; the state of the last saved layer stays.
        """
        if self.options.steps == 0:
            return self.run
        if len(self.ids) == self.fitting < len(self.data.train):
            remark(
                f"layers are trained on {len(self.ids):,} of {len(self.data.train):,} rows, whose states fit in memory"
            )
        read = _first_inputs(self.student, self.own, self.ids, self.options.rows)
        exact = read
        losses, saved = list[float](), time.monotonic()
        for number, (own, theirs) in enumerate(zip(self.own, self.theirs, strict=True)):
            goal = self._outputs(number, theirs, exact, progress)
            if number >= self.run.layers:
                self.begun, self.layer_step = self.run.seconds, 0
                losses += self._train_layer(own, read, goal, self.calls[number], progress)
                self.run.layers, self.layer_step, self.begun = number + 1, 0, self.run.seconds
                if time.monotonic() - saved > 60 * self.options.save_every or self.run.layers == len(self.own):
                    self._judge(losses, remark)
                    self.save(key)
                    saved = time.monotonic()
            if number + 1 < len(self.own):
                read, exact = self._outputs(number, own, read, progress), goal
        return self.run

    @property
    def seconds_left(self) -> float:
        """By the pace so far: of the training, and of the passes that compute what layers read and learn to give."""
        if not self.passes:
            return math.inf
        return super().seconds_left + self.pass_seconds / self.passes * (2 * len(self.own) - 1 - self.passes)

    @torch.no_grad()
    def _outputs(self, number: int, layer: nn.Module, read: Tensor, progress: Progress) -> Tensor:
        """What a layer gives of all rows: float32 [rows, tokens, hidden], in the CPU's memory."""
        name, found, done = f"outputs of layer {number + 1} of {len(self.own)}", list[Tensor](), 0
        for part in torch.split(read, self.options.rows):
            began = time.monotonic()
            found.append(_output(layer(part.to(self.student.device), **self.calls[number])).cpu())
            self.pass_seconds += time.monotonic() - began
            self.passes += len(part) / len(read)
            done += len(part)
            progress.step(name, done, len(read), self.seconds_left)
        return torch.cat(found)

    def _train_layer(
        self, layer: nn.Module, read: Tensor, goal: Tensor, call: Mapping[str, Any], progress: Progress
    ) -> list[float]:
        options, device = self.options, self.student.device
        rates: dict[nn.Parameter, float] = {}  # a scale that linears share is there once
        for module in layer.modules():
            for name, item in module.named_parameters(recurse=False):
                is_weight = isinstance(module, nn.Linear) and name == "weight"  # or a scale, a gain, a bias
                if item.requires_grad:
                    rates[item] = options.rate * _step(module, item) if is_weight else options.scale_rate
        groups = [{"params": [item], "lr": rate} for item, rate in rates.items()]
        optimizer = AdamW(groups, betas=BETAS, weight_decay=0.0)
        bases = [group["lr"] for group in optimizer.param_groups]
        losses = list[float]()
        while self.layer_fraction < 1:
            with self.timed():
                for group, base in zip(optimizer.param_groups, bases, strict=True):
                    group["lr"] = base * rate_at(self.layer_fraction)
                rows = torch.from_numpy(batch(len(read), self.layer_step, options.rows, options.seed, self.run.layers))
                with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bf16"):
                    found = _output(layer(read[rows].to(device), **call))
                loss = hidden_distance(goal[rows].to(device), found.float())
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise Error(f"The loss is {losses[-1]} in layer {self.run.layers}; give a smaller --lr.")
            self.run.step += 1
            self.layer_step += 1
            self._show(losses[-1], progress)
        return losses


@torch.no_grad()
def _step(linear: nn.Module, weight: Tensor) -> float:
    """What a rate is relative to: the mean step of the grid, or a quarter of the mean weight where nothing is rounded.

    Matrices of one layer may differ a hundredfold: by smoothing, and by 4 and 8 bits.
    """
    scales = linear.weight_scales() if isinstance(linear, StudentLinear) else None
    return float(weight.abs().mean()) / 4 if scales is None else float(scales.mean())


class _Stopped(Exception):  # noqa: N818 - no error: the rest of a model is not computed
    pass


@torch.no_grad()
def _calls(model: Any, layers: nn.ModuleList, ids: Tensor) -> list[dict[str, Any]]:
    """What each layer is called with besides its input: positions, masks."""
    found: list[dict[str, Any]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, __, named: found.append(named), with_kwargs=True) for layer in layers
    ]
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [{name: value for name, value in call.items() if name != "hidden_states"} for call in found]


@torch.no_grad()
def _first_inputs(model: Any, layers: nn.ModuleList, ids: Tensor, rows: int) -> Tensor:
    """What the first layer reads of all rows: float32 [rows, tokens, hidden], in the CPU's memory."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        found.append((inputs[0] if inputs else named["hidden_states"]).cpu())
        raise _Stopped

    handle = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for part in torch.split(ids, rows):
            try:
                model(part.to(model.device), use_cache=False)
            except _Stopped:
                continue
    finally:
        handle.remove()
    return torch.cat(found)


def _output(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found
