"""Rows of token ids of different lengths as the inputs of an encoder graph."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Row = Ids | Sequence[int]
SLACK = 8  # tokens


def padded(rows: Sequence[Row], types: Sequence[Row] | None = None) -> dict[str, Ids]:
    """One batch: ids [rows, longest] padded with 0 on the right, their lengths [rows], and their segments; all int64.

    `types` are the segments of each row's tokens, 0 where there are none.
    """
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    segments = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        if types is not None:
            segments[index, : len(row)] = types[index]
    return {"input_ids": ids, "lengths": lengths, "token_type_ids": segments}


def batches(lengths: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, each of at most so many `tokens`, padding included.

    The longest row of a batch has at most a quarter and SLACK tokens more than the shortest, so that little is padding.
    A row of more tokens is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and ((len(batch) + 1) * lengths[index] > tokens or lengths[index] > 1.25 * lengths[batch[0]] + SLACK):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
