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


class Perceptron(nn.Module):
    """Three linear layers on an input of the graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(12, 32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class ConvNet(nn.Module):
    """Two convolutions, one of them in groups, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)  # which the export folds into the first
        self.second = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 5)
        self.norm.running_mean += 0.2

    def forward(self, image):
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(image)))))
        return {"scores": self.head(hidden.mean((2, 3)))}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# By name: the module, an example, and its dynamic axes.
QUANTIZABLE = {
    "perceptron": (Perceptron, {"x": normal(2, 12)}, {"x": {0: "batch"}}),
    "convolutions": (ConvNet, {"image": normal(2, 3, 8, 8)}, {"image": {0: "batch", 2: "height"}}),
}
