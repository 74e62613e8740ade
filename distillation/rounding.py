"""Linears that round as the engine does, with gradients: weights by blocks, activations by static scales, zeros kept.

The forward pass is that of the quantized canonical graph: codes are the nearest integers, half to even, saturated, and
values are codes times scales in float32. Gradients pass the rounding as if it were not there, and stop where a code
saturates (Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013); scales are trained by
the gradient of the rounded value (Esser et al., "Learned Step Size Quantization", ICLR 2020).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from piston.graph.rounding import Grid

INT8 = (-128, 127)  # codes of activations, as QuantizeLinear saturates them


@dataclass(frozen=True, slots=True)
class InputScale:
    """The static scale of a linear's input; with a ratio, what it leaves over is rounded by `ratio` times it."""

    scale: float
    ratio: int = 0


class _Rounded(torch.autograd.Function):
    """Value -> codes times scales of the same shape, or one that broadcasts; the codes are in `bounds`."""

    @staticmethod
    def forward(context: Any, value: Tensor, scale: Tensor, bounds: tuple[int, int]) -> Tensor:
        steps = value / scale
        codes = steps.round().clamp_(*bounds)
        context.save_for_backward(steps, codes)
        context.bounds, context.scale = bounds, scale.shape
        return codes * scale

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        steps, codes = context.saved_tensors
        low, high = context.bounds
        inside = ((steps >= low - 0.5) & (steps <= high + 0.5)).to(gradient.dtype)
        of_scale = gradient * (codes - steps * inside)
        return gradient * inside, of_scale.sum_to_size(context.scale), None


def rounded(value: Tensor, scale: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Nearest codes within `bounds` times their scale, float32, the shape of `value`."""
    return _Rounded.apply(value, scale, bounds)  # type: ignore[no-any-return,no-untyped-call]


class StudentLinear(nn.Linear):
    """A linear layer [out, in] whose forward pass rounds; `weight` is in float and is what is trained.

    Args:
        linear: whose weight and bias it takes over.
        grid: of its weight; None leaves that in float.
        scales: of the weight, float32 [blocks, out] as `piston.graph.rounding` has them.
        read: the scale of its input; None leaves that in float.
        mask: bool [out, in], False where the weight stays zero.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        grid: Grid | None = None,
        scales: Tensor | None = None,
        read: InputScale | None = None,
        mask: Tensor | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.mask: Tensor | None
        self.base: Tensor
        self.input_base: Tensor
        self.grid, self.ratio = grid, 0 if read is None else read.ratio
        self.register_buffer("mask", mask)
        self.register_buffer("base", None if scales is None else scales.T.contiguous())
        self.register_buffer("input_base", None if read is None else torch.tensor(read.scale))
        # Scales are trained as what they are multiplied by, whatever their size: base * exp(growth).
        self.growth = None if scales is None else nn.Parameter(torch.zeros_like(scales.T.contiguous()))
        self.input_growth = None if read is None else nn.Parameter(torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """[..., in] to [..., out]."""
        return functional.linear(self.rounded_input(input), self.rounded_weight(), self.bias)

    def weight_scales(self) -> Tensor | None:
        """Float32 [out, blocks]."""
        return None if self.growth is None else self.base * torch.exp(self.growth)

    def input_scale(self) -> Tensor | None:
        """A scalar."""
        return None if self.input_growth is None else self.input_base * torch.exp(self.input_growth)

    def rounded_weight(self) -> Tensor:
        """The weight that the engine has, float32 [out, in]."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        scales = self.weight_scales()
        if self.grid is None or scales is None:
            return weight
        size = self.grid.block or self.in_features
        spread = scales.repeat_interleave(size, dim=1)[:, : self.in_features]
        return rounded(weight, spread, (self.grid.low, self.grid.high))

    def rounded_input(self, value: Tensor) -> Tensor:
        """The input that the engine's product reads."""
        scale = self.input_scale()
        if scale is None:
            return value
        value = value.float()  # bfloat16 where products are
        fine = rounded(value, scale, INT8)
        return fine + rounded(value - fine, scale * self.ratio, INT8) if self.ratio else fine
