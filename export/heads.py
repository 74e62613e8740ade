"""What the graph of an encoder gives of what its module of transformers returns.

Each takes the module's output and a mask bool [batch, seq] of the tokens that are not padding.
"""

from typing import Any

import torch
from torch import nn


class Pooled(nn.Module):
    """One vector a row, by the pooling of a checkpoint of sentence-transformers."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, dim]."""
        pooled: torch.Tensor = self.pooling(output.last_hidden_state, mask)
        return pooled


class Logits(nn.Module):
    """The logits of the module's own head."""

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, labels], or [batch, seq, labels] of a head on every token."""
        del mask
        logits: torch.Tensor = output.logits
        return logits


class SpanLogits(nn.Module):
    """Of each token the logits that an answer starts with it, and that it ends with it."""

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, seq, 2]."""
        del mask
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
