"""The arrays in the blocks of a step, for prefill and decode."""

import numpy as np

from piston.core.bundle.interface import SOURCE_LENGTHS
from piston.runtime.backends.device_block import MOVING, Block, Fields


def input_fields(rows: int, seq: int, kept: int, capacity: int, *, has_lengths: bool = False) -> Fields:
    """The inputs of a step of at most rows x seq tokens with rows x kept logits; the moving ones come first.

    `has_lengths`: the rows' sources have lengths, which the graph reads.
    """
    integers = zip(MOVING, (rows * seq, rows * seq, rows, rows), strict=True)
    return {
        **{name: (count, np.int64) for name, count in integers},
        "logits_positions": (rows * kept, np.int64),
        **({SOURCE_LENGTHS.name: (rows, np.int64)} if has_lengths else {}),
        "temperature": (rows, np.float32),
        "top_k": (rows, np.int64),
        "top_p": (rows, np.float32),
        "uniforms": (rows * capacity, np.float32),
    }


def output_fields(rows: int, kept: int) -> Fields:
    """The outputs that the next step takes; with kept = 1 they have its inputs' layout, so one copy moves them."""
    counts = (rows * kept, rows * kept, rows, rows)
    return {f"next.{name}": (count, np.int64) for name, count in zip(MOVING, counts, strict=True)}


def moving_bytes(block: Block) -> int:
    """Bytes of a block of inputs that a step passes to the next."""
    return block.offsets["logits_positions"]
