"""2:4 sparsity of a student: of every four inputs of an output two weights are zero, and stay zero while it trains."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from piston.graph import sparsity
from piston.graph.sparsity import GROUP, LEFT

LEAST = 1e-30


def two_of_four(weight: Tensor, squares: Tensor | None = None) -> Tensor:
    """Which weights stay, bool [out, in]: of every four inputs the two of largest magnitude.

    Args:
        weight: float [out, in], `in` divisible by four.
        squares: sums of the inputs' squares [in]; magnitudes are then multiplied by their roots (Sun et al., "A Simple
            and Effective Pruning Approach for Large Language Models", ICLR 2024).
    """
    # Not zero where nothing was read: an output whose weights all read that would be left without any.
    score = weight.abs() if squares is None else weight.abs() * squares.clamp_min(LEAST).sqrt()
    groups = score.reshape(len(weight), -1, GROUP)
    places = groups.argsort(dim=-1, descending=True, stable=True)[..., :LEFT]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, places, True).reshape(weight.shape)


def is_sparse(weight: Tensor) -> bool:
    """Whether of every four inputs [out, in] two weights or more are zero, in every output."""
    return sparsity.is_sparse(weight.detach().cpu().numpy().T)


def sparse_already(linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    """The zeros of linears that are 2:4 sparse before any training, as masks."""
    return {name: linear.weight != 0 for name, linear in linears.items() if is_sparse(linear.weight)}
