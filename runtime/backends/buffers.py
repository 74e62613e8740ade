"""The small inputs and the logits of a step: host memory allocated once and refilled, never moved."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def step_feed(ids: NDArray[np.int64], start: int = 0) -> dict[str, NDArray[np.int64]]:
    """Every input that a graph may have, states aside, for one row behind `start` positions: token ids [tokens] int64.

    A decoder gives logits of each token. An encoder begins at 0; the row has no padding and is its first segment.
    """
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
    """Room for a step of `rows` rows and `tokens` tokens in all, with logits for `kept` of the tokens.

    A decode step of n rows takes n of each; a prefill chunk takes one row, its tokens, and as many logits as asked.
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
