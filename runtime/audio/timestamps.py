"""The timestamp tokens of Whisper: which may come next, and the segments that they bound.

Rules and cutting are those of Whisper's own decoding (Radford et al. 2022, arXiv:2212.04356; `decoding.py` and
`transcribe.py` of the reference), as transformers' WhisperForConditionalGeneration follows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.runtime.sampling.processors import Logits
from piston.runtime.sampling.sampler import Constraint

UNIT = 0.02  # seconds of one timestamp token: one position of the encoder
UNIT_FRAMES = 2  # log-mel frames of it


class TimestampRules(Constraint):
    """What a row may say next, if its text is to carry timestamps.

    Args:
        no_timestamps: the token that asks for text without them; the first timestamp, 0.00, follows it.
        end: the token that ends the text; all below it are text.
        latest_start: timestamp units within which the first segment must begin; None: anywhere.
    """

    def __init__(self, *, no_timestamps: int, end: int, latest_start: int | None = None) -> None:
        self._no_timestamps, self._first, self._end = no_timestamps, no_timestamps + 1, end
        self._latest_start = latest_start
        self._ids: list[int] = []

    def accept(self, token_id: int) -> None:
        """Take over the token that was picked."""
        self._ids.append(token_id)

    def allowed(self, logits: Logits) -> NDArray[np.bool_]:
        """See Constraint."""
        return self.allowed_after(self._ids, logits)

    def allowed_after(self, token_ids: Sequence[int], logits: Logits) -> NDArray[np.bool_]:
        """Which tokens may come next behind these, bool [vocab].

        Timestamps come in pairs between segments and never go back; the text begins with one; and where all of them
        together are likelier than every other token, the next token is one of them.
        """
        text, stamps = self._ranges(token_ids, logits.size)
        if self._prefers_stamp(logits[text], logits[stamps]):
            text = slice(0, 0)
        mask = np.zeros(logits.size, np.bool_)
        mask[text] = mask[stamps] = True
        return mask

    def _ranges(self, token_ids: Sequence[int], vocab_size: int) -> tuple[slice, slice]:
        """The other tokens and the timestamps that may come next by what was said, whatever the logits are."""
        if not token_ids:
            last = vocab_size if self._latest_start is None else self._first + self._latest_start + 1
            return slice(0, 0), slice(self._first, last)
        text, start = 0, self._first
        was_stamp = [token >= self._first for token in token_ids[-2:]]
        if was_stamp[-1]:
            if len(was_stamp) == 1 or was_stamp[0]:
                start = vocab_size  # a pair is complete: text follows
            else:
                text = self._end  # its second half, or the end
        latest = next((token for token in reversed(token_ids) if token >= self._first), None)
        if latest is not None:
            repeats = was_stamp == [False, True]  # the end of a segment may be the beginning of the next
            start = max(start, latest + (0 if repeats else 1))
        return slice(text, self._no_timestamps), slice(start, vocab_size)

    @staticmethod
    def _prefers_stamp(text: Logits, stamps: Logits) -> bool:
        """Whether all timestamps together are likelier than the likeliest other token."""
        if not stamps.size or not np.isfinite(highest := float(stamps.max())):
            return False
        total = np.exp(stamps.astype(np.float64) - highest).sum()
        return bool(np.log(total) + highest > float(text.max(initial=-np.inf)))


@dataclass(frozen=True, slots=True)
class Span:
    """One segment of a window: seconds from the window's start, and its tokens, timestamps included."""

    start: float
    end: float
    token_ids: tuple[int, ...]


def cut(token_ids: Sequence[int], first: int, window_frames: int) -> tuple[list[Span], int]:
    """Segments of a window's tokens (without the end token), and log-mel frames to go on by.

    Args:
        token_ids: what was decoded behind the prompt.
        first: the token of timestamp 0.00.
        window_frames: frames of audio in the window.

    After a last pair of timestamps the text is cut off in its middle: the next window begins there. A single timestamp
    at the end says that nothing follows in this window.
    """
    ids = list(token_ids)
    is_stamp = [token >= first for token in ids]
    ends_single = is_stamp[-2:] == [False, True]
    cuts = [index + 1 for index in range(len(ids) - 1) if is_stamp[index] and is_stamp[index + 1]]
    if not cuts:
        stamps = [token - first for token, stamp in zip(ids, is_stamp, strict=True) if stamp]
        units = stamps[-1] if stamps and stamps[-1] else window_frames // UNIT_FRAMES
        return [Span(0.0, units * UNIT, tuple(ids))], window_frames
    if ends_single:
        cuts.append(len(ids))
    begins = [0, *cuts[:-1]]
    spans = [
        Span((ids[begin] - first) * UNIT, (ids[end - 1] - first) * UNIT, tuple(ids[begin:end]))
        for begin, end in zip(begins, cuts, strict=True)
    ]
    return spans, window_frames if ends_single else (ids[cuts[-1] - 1] - first) * UNIT_FRAMES
