"""Logits to scores, float32."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(logits: Array) -> Array:
    """The probability of each logit by itself, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)), np.float32)
