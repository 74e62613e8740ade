"""The log-mel windows that an encoder reads of an audio of any length, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from piston.runtime.audio.log_mel import Frames, LogMel, normalized
from piston.runtime.audio.resample import Samples

KEPT = 1 << 16  # frames that are kept from the first pass: 11 minutes, 21 MB of 80 bands


class MelWindows:
    """Windows of an audio, whose frames are computed once or, where they are many, twice.

    The floor of the values depends on the highest of the whole audio, so all frames are computed before the first
    window is given. Those of an audio of some minutes are kept; a longer one is read again, block by block. The first
    pass also tells how much there is to do.

    Args:
        read: begins to read the audio anew: blocks of float32 [samples].
        settings: of the frames.
        listen: gets each block of the first pass.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Samples]],
        settings: LogMel,
        listen: Callable[[Samples], None] = lambda _block: None,
    ) -> None:
        self.settings = settings
        self._read = read
        self._highest, num_frames, kept = -np.inf, 0, list[Frames]()
        for frames in settings.raw_frames(self._padded(counts := [0], listen)):
            self._highest = max(self._highest, float(frames.max()))
            num_frames += len(frames)
            if num_frames <= KEPT:
                kept.append(frames)
            else:
                kept.clear()
        self.seconds = counts[0] / settings.rate
        self.num_frames = max(counts[0] // settings.hop, settings.window_frames)
        self._frames = iter(kept) if num_frames <= KEPT else settings.raw_frames(self._padded([0]))
        self._held: Frames = np.zeros((0, settings.num_mels), np.float32)
        self._start = 0  # of what is held

    @property
    def spoken_frames(self) -> int:
        """Frames that hold audio, and not the silence behind a short one."""
        return min(self.num_frames, int(self.seconds * self.settings.frames_per_second))

    def at(self, start: int, end: int | None = None) -> tuple[NDArray[np.float32], int]:
        """The window at frame `start`, float32 [1, mels, window_frames], and how many of its frames there are.

        Frames beyond the end of the audio, or beyond frame `end`, are 0. Windows are asked for in ascending order.
        """
        size = self.settings.window_frames
        while len(self._held) - (start - self._start) < size:
            frames = next(self._frames, None)
            if frames is None:
                break
            self._held = np.concatenate([self._held, frames])
            if (ended := min(start - self._start, len(self._held))) > 0:
                self._held, self._start = self._held[ended:], self._start + ended
        assert start >= self._start, "windows are read in order"
        frames = self._held[start - self._start :][: size if end is None else min(size, end - start)]
        window = np.zeros((1, self.settings.num_mels, size), np.float32)
        window[0, :, : len(frames)] = normalized(frames, self._highest).T
        return window, len(frames)

    def _padded(self, count: list[int], listen: Callable[[Samples], None] = lambda _block: None) -> Iterator[Samples]:
        """The samples, counted; a short audio is followed by silence, a long one by nothing."""
        for block in self._read():
            count[0] += len(block)
            listen(block)
            yield block
        if (missing := self.settings.window_frames * self.settings.hop - count[0]) > 0:
            yield np.zeros(missing, np.float32)
