"""Modules of users, as tests export them."""

import torch
from torch import nn


class Scorer(nn.Module):
    """Two inputs of four types of layers, two outputs of two types."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.table = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 5)
        self.norm.running_mean += 0.3  # what training would have left, so that evaluation differs

    def forward(self, signal, kind):
        hidden = torch.relu(self.norm(self.convolution(signal))).mean(-1) + self.table(kind)
        scores = self.head(hidden)
        return {"scores": scores, "best": scores.argmax(-1)}


SHAPES = {"signal": {0: "batch", 2: "time"}, "kind": {0: "batch"}}


def example():
    torch.manual_seed(1)
    return {"signal": torch.randn(2, 3, 7), "kind": torch.tensor([1, 9])}
