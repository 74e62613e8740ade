"""How far a student is from its teacher."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Judged(NamedTuple):
    """Of rows: the mean KL divergence in nats, the share of equal first choices, and both perplexities."""

    kl: float
    top1: float
    student_ppl: float
    teacher_ppl: float


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of KL(teacher || student) in nats, times the square of the temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: so the gradient does not depend on the
    temperature's size. Logits are float32 [tokens, vocabulary].
    """
    exact = functional.log_softmax(teacher / temperature, dim=-1)
    found = functional.log_softmax(student / temperature, dim=-1)
    loss = functional.kl_div(found, exact, reduction="none", log_target=True).sum(dim=-1).mean()
    return loss * temperature**2


def hidden_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over layers of the squared distance of a token by the square of its length in the teacher.

    Both are float32 [layers, tokens, hidden]. Relative to the token: a first token can be a thousand times as long as
    the others.
    """
    distance = (teacher - student).square().sum(dim=-1)
    return (distance / teacher.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)).mean()


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean negative log likelihood of the next token; logits [tokens, vocabulary] of ids [tokens]."""
    return functional.cross_entropy(logits[:-1], ids[1:])
