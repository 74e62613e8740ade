"""Log-mel frames as Whisper reads them (Radford et al. 2022, arXiv:2212.04356, section 2.2).

Every `hop` samples the power spectrum of a window is summed in triangular bands of the mel scale of Slaney's Auditory
Toolbox, and its base-10 logarithm taken. Values are then floored at 8 below the highest of the whole audio and brought
to about -1 to 1. transformers' WhisperFeatureExtractor is the reference.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from piston.runtime.audio.resample import Samples

Frames = NDArray[np.float32]  # [frames, mels]

LEAST_POWER = 1e-10
RANGE = 8.0  # in powers of ten, below the highest value
BREAK_HZ, BREAK_MEL, LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0  # Slaney's scale: linear below, logarithmic above
AT_ONCE = 1 << 11  # frames computed together


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMel:
    """The settings of the frames, as preprocessor_config.json names them."""

    num_mels: int
    rate: int = 16_000
    n_fft: int = 400
    hop: int = 160
    window_seconds: int = 30

    @classmethod
    def of(cls, settings: dict[str, int]) -> Self:
        """From the settings of a bundle."""
        return cls(
            num_mels=settings["feature_size"],
            rate=settings["sampling_rate"],
            n_fft=settings["n_fft"],
            hop=settings["hop_length"],
            window_seconds=settings["chunk_length"],
        )

    @property
    def frames_per_second(self) -> int:
        """Frames of one second."""
        return self.rate // self.hop

    @property
    def window_frames(self) -> int:
        """Frames that the encoder reads at once."""
        return self.window_seconds * self.frames_per_second

    def raw_frames(self, blocks: Iterable[Samples]) -> Iterator[Frames]:
        """Base-10 logarithms of the bands, float32 [frames, mels]: a frame for each `hop` samples of the whole audio.

        Samples beyond both ends mirror the audio, as in centred windows of librosa and torch.stft.
        """
        half = self.n_fft // 2
        banks, window = mel_banks(self), np.hanning(self.n_fft + 1)[:-1]
        held, begins = np.zeros(0, np.float32), True
        for block in blocks:
            held = np.concatenate([held, block])
            if begins and len(held) > self.n_fft:
                held, begins = np.concatenate([held[half:0:-1], held]), False
            while not begins and (count := min((len(held) - self.n_fft) // self.hop, AT_ONCE)) > 0:
                yield self._logarithms(held, count, window, banks)
                held = held[count * self.hop :]
        if begins and len(held) > 1:
            held = np.pad(held, (half, 0), mode="reflect")
        held = np.pad(held, (0, half), mode="reflect") if len(held) > 1 else np.zeros(self.n_fft, np.float32)
        # The frame centred on the end of the audio is left out.
        while (count := min((len(held) - self.n_fft) // self.hop, AT_ONCE)) > 0:
            yield self._logarithms(held, count, window, banks)
            held = held[count * self.hop :]

    def _logarithms(
        self, samples: Samples, count: int, window: NDArray[np.float64], banks: NDArray[np.float64]
    ) -> Frames:
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft)[:: self.hop][:count]
        spectrum = np.fft.rfft(frames * window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        return np.log10(np.maximum(power @ banks, LEAST_POWER)).astype(np.float32)


def normalized(raw: Frames, highest: float) -> Frames:
    """What the encoder reads of raw frames, where `highest` is the highest value of the whole audio."""
    return np.asarray((np.maximum(raw, np.float32(highest - RANGE)) + np.float32(4)) / np.float32(4), np.float32)


def mel_banks(settings: LogMel) -> NDArray[np.float64]:
    """Triangles over frequencies that touch at their centres and have equal area, float64 [n_fft // 2 + 1, mels]."""
    nyquist = settings.rate / 2
    edges = _hertz(np.linspace(_mels(0.0), _mels(min(8000.0, nyquist)), settings.num_mels + 2))
    frequencies = np.linspace(0, nyquist, settings.n_fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low)))


def _mels(hertz: float) -> float:
    linear = hertz * BREAK_MEL / BREAK_HZ
    return linear if hertz < BREAK_HZ else BREAK_MEL + float(np.log(hertz / BREAK_HZ)) / float(LOG_STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * BREAK_HZ / BREAK_MEL
    return np.where(mels < BREAK_MEL, linear, BREAK_HZ * np.exp(LOG_STEP * (mels - BREAK_MEL)))
