"""Word timestamps: the words of a text laid along the audio by the decoder's attention to it.

Some heads of the decoder look where in the audio the word is that they say (the checkpoint's `alignment_heads`). Their
attention is normalized, smoothed and averaged, and the cheapest monotonic path through it gives each token its time
(dynamic time warping), as in Whisper's reference (`timing.py`) and in transformers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from piston.runtime.audio.timestamps import UNIT

MEDIAN_WIDTH = 7  # encoder positions
NO_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages whose words are not set apart by spaces
# Punctuation that belongs to the next word, and to the former one.
OPENING, CLOSING = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - the full-width forms are meant
ASCII_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
REPLACEMENT = "\ufffd"  # of bytes that are no whole character


def token_times(attention: NDArray[np.float32], frames: int) -> NDArray[np.float64]:
    """Seconds at which each token begins, float64 [tokens].

    Args:
        attention: softmax weights of the alignment heads, [heads, tokens, positions].
        frames: log-mel frames of audio in the window; what the encoder read behind them is left out.
    """
    weights = attention[:, :, : frames // 2].astype(np.float32)
    deviation = weights.std(axis=1, keepdims=True)
    weights = (weights - weights.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, np.float32(1))
    matrix = -_median(weights, MEDIAN_WIDTH).mean(axis=0).astype(np.float64)
    tokens, positions = warping_path(matrix)
    begins = np.concatenate([[True], np.diff(tokens) > 0])
    return np.asarray(positions[begins] * UNIT, np.float64)


def warping_path(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and the columns of the cheapest path through `cost` [rows, columns], corner to corner, by steps of one.

    Of equally cheap ways a step along the columns is taken. Computed by anti-diagonals, whose cells do not depend on
    one another.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    came = np.full((rows + 1, columns + 1), 2, np.int8)  # 0: both, 1: one row down, 2: one column on
    came[1:, 0] = 1
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        both, down, on = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        choice = np.where((both < down) & (both < on), 0, np.where((down < both) & (down < on), 1, 2))
        came[row, column] = choice
        total[row, column] = cost[row - 1, column - 1] + np.choose(choice, [both, down, on])
    path = []
    row_, column_ = rows, columns
    while row_ > 0 or column_ > 0:
        path.append((row_ - 1, column_ - 1))
        step = came[row_, column_] if row_ else 2
        row_, column_ = row_ - (step != 2), column_ - (step != 1)  # noqa: PLR2004
    found = np.array(path[::-1], np.int64)
    return found[:, 0], found[:, 1]


def words_of(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], end: int, language: str | None
) -> list[tuple[str, list[int]]]:
    """Words with the places of their tokens; punctuation is part of the word at it.

    Args:
        token_ids: of a segment; tokens from `end` on are no text, and words of their own.
        decode: the text of tokens, special ones included.
        end: the token that ends a text.
        language: its code; some languages have no spaces, and each character stands alone.
    """
    words: list[tuple[str, list[int]]] = []
    for text, places in _characters(token_ids, decode):
        begins = (
            language in NO_SPACES
            or token_ids[places[0]] >= end
            or text.startswith(" ")
            or text.strip() in ASCII_PUNCTUATION
        )
        if begins or not words:
            words.append((text, places))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1] + places)
    return _with_punctuation(words)


def _characters(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[tuple[str, list[int]]]:
    """The fewest tokens at a time that are whole characters."""
    whole, found, places, offset = decode(token_ids), [], [], 0
    for place in range(len(token_ids)):
        places.append(place)
        text = decode([token_ids[index] for index in places])
        at = text.find(REPLACEMENT)
        # A replacement character that the whole text has too is one that the model said.
        if at < 0 or offset + at >= len(whole) or whole[offset + at] == REPLACEMENT:
            found.append((text, places))
            places, offset = [], offset + len(text)
    return found


def _with_punctuation(words: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    merged: list[tuple[str, list[int]]] = []
    for text, places in reversed(words):
        if merged and text.startswith(" ") and text.strip() in OPENING:
            merged[-1] = (text + merged[-1][0], places + merged[-1][1])
        else:
            merged.append((text, places))
    result: list[tuple[str, list[int]]] = []
    for text, places in reversed(merged):
        if result and not result[-1][0].endswith(" ") and text in CLOSING:
            result[-1] = (result[-1][0] + text, result[-1][1] + places)
        else:
            result.append((text, places))
    return result


def _median(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The median of `width` neighbours along the last axis; the ends mirror."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    return np.asarray(np.sort(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)[..., half])
