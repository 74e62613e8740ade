"""The log-mel windows that an encoder reads of an audio of any length, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from piston.runtime.audio.log_mel import Frames, LogMel, normalized
from piston.runtime.audio.resample import Samples


class MelWindows:
    """Windows of an audio that is read twice: once for its length and its highest value, once for its frames.

    Both passes read block by block: the frames of one window are held at a time. The floor of the values depends on the
    highest of the whole audio, which is why the first pass is needed; it also tells how much there is to do.

    Args:
        read: begins to read the audio anew: blocks of float32 [samples].
        settings: of the frames.
    """

    def __init__(self, read: Callable[[], Iterable[Samples]], settings: LogMel) -> None:
        self.settings = settings
        self._read = read
        highest = -np.inf
        for frames in settings.raw_frames(_counted(read(), counts := [0])):
            highest = max(highest, float(frames.max()))
        num_samples = counts[0]
        self.seconds = num_samples / settings.rate
        self._is_padded = num_samples <= settings.window_frames * settings.hop
        if self._is_padded:  # a short audio is followed by silence, a long one by nothing
            highest = max(highest, float(np.log10(1e-10)))
            num_samples = settings.window_frames * settings.hop
        self.num_frames = num_samples // settings.hop
        self._highest = highest
        self._frames = self._reading()
        self._held: Frames = np.zeros((0, settings.num_mels), np.float32)
        self._start = 0  # of what is held

    @property
    def spoken_frames(self) -> int:
        """Frames that hold audio, and not the silence behind a short one."""
        return min(self.num_frames, int(self.seconds * self.settings.frames_per_second))

    def at(self, start: int) -> tuple[NDArray[np.float32], int]:
        """The window at frame `start`, float32 [1, mels, window_frames], and how many of its frames there are.

        Frames beyond the end are 0. Windows are asked for in ascending order.
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
        frames = self._held[start - self._start :][:size]
        window = np.zeros((1, self.settings.num_mels, size), np.float32)
        window[0, :, : len(frames)] = normalized(frames, self._highest).T
        return window, len(frames)

    def _reading(self) -> Iterator[Frames]:
        return self.settings.raw_frames(self._padded(self._read()))

    def _padded(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        counted = [0]
        yield from _counted(blocks, counted)
        if self._is_padded:
            yield np.zeros(self.settings.window_frames * self.settings.hop - counted[0], np.float32)


def _counted(blocks: Iterable[Samples], count: list[int]) -> Iterator[Samples]:
    for block in blocks:
        count[0] += len(block)
        yield block
