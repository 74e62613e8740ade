"""The small inputs and the logits of a step, in host memory that is allocated once and never moved."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def step_feed(ids: NDArray[np.int64], start: int = 0) -> dict[str, NDArray[np.int64]]:
    """The int64 inputs, except states, of a step of one row after `start` positions, with logits of each token."""
    size = len(ids)
    return {
        "input_ids": ids[None],
        "position_ids": np.arange(start, start + size)[None],
        "write_indices": np.array([start]),
        "kv_lengths": np.array([start + size]),
        "logits_positions": np.arange(size)[None],
        "lengths": np.array([size]),
        "token_type_ids": np.zeros((1, size), np.int64),
    }


class Buffers:
    """Memory for a step of `rows` rows and `tokens` tokens in total, with logits for `kept` of them.

    A decode step of n rows takes n of each; a prefill chunk takes one row, its tokens, and the requested logits.
    """

    def __init__(self, rows: int, tokens: int, kept: int, vocab_size: int) -> None:
        self.input_ids = np.zeros(tokens, np.int64)
        self.position_ids = np.zeros(tokens, np.int64)
        self.write_indices = np.zeros(rows, np.int64)
        self.kv_lengths = np.zeros(rows, np.int64)
        self.total_sequence_length = np.zeros(1, np.int32)  # the largest of kv_lengths
        self.logits_positions = np.zeros(kept, np.int64)
        self.logits = np.zeros((kept, vocab_size), np.float32)

    def inputs(self, rows: int, seq: int, kept: int, offset: int = 0) -> dict[str, tuple[NDArray[Any], list[int]]]:
        """Array and shape of each input of a step [rows, seq] with [rows, kept] logits, `offset` rows in."""
        return {
            "input_ids": (self.input_ids[offset:], [rows, seq]),
            "position_ids": (self.position_ids[offset:], [rows, seq]),
            "write_indices": (self.write_indices[offset:], [rows]),
            "kv_lengths": (self.kv_lengths[offset:], [rows]),
            "total_sequence_length": (self.total_sequence_length, []),
            "logits_positions": (self.logits_positions[offset:], [rows, kept]),
        }
