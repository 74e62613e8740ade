"""Voices without words, made by construction: what golden answers of speech models and benchmarks listen to.

A buzz of harmonics whose pitch glides is shaped by three resonances that move from vowel to vowel (their frequencies
are those of men in Peterson and Barney 1952, "Control methods used in a study of the vowels", table II), with noise
between the syllables. The same numbers give the same sound, up to the last bits of a machine's sines: what must be the
same on two machines is written to a file.
"""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOWELS = ((270, 2290, 3010), (730, 1090, 2440), (530, 1840, 2480), (300, 870, 2240), (570, 840, 2410))  # Hz
SYLLABLES = 4  # a second
WIDTH = 80.0  # Hz, of a resonance
PITCH, GLIDE = 120.0, 25.0  # Hz
HIGHEST = 4000.0  # Hz, of the harmonics
NOISE = 0.05
PEAK = 0.5
PIECE = 30.0  # seconds


def made_voice(seconds: float, rate: int, seed: int = 0) -> NDArray[np.float32]:
    """A voice, float32 [samples] from -PEAK to PEAK; another seed gives other vowels."""
    return _voice(int(seconds * rate), rate, seed)


def _voice(num_samples: int, rate: int, seed: int) -> NDArray[np.float32]:
    rng, times = np.random.default_rng(seed), np.arange(num_samples) / rate
    knots = np.arange(num_samples * SYLLABLES // rate + 2) / SYLLABLES
    vowels = np.array(VOWELS, np.float64)[rng.integers(len(VOWELS), size=len(knots))]
    resonances = [np.interp(times, knots, vowels[:, number]) for number in range(vowels.shape[1])]
    pitch = PITCH + GLIDE * np.sin(2 * np.pi * 0.6 * times + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros(len(times))
    for number in range(1, int(min(HIGHEST, rate / 2) / (PITCH + GLIDE))):
        loudness = sum(1 / (1 + ((number * pitch - resonance) / WIDTH) ** 2) for resonance in resonances)
        sound += loudness * np.sin(number * phase)
    opening = np.abs(np.sin(np.pi * SYLLABLES / 2 * times))  # of the mouth
    sound = sound / np.abs(sound).max(initial=1e-9) * opening
    sound += NOISE * (1 - opening) * rng.standard_normal(len(times))
    return np.asarray(PEAK * sound / np.abs(sound).max(initial=1e-9), np.float32)


def write_voice(path: Path, seconds: float, rate: int, seed: int = 0) -> None:
    """Write a voice as a WAV file of 16 bits: `made_voice`, and after each PIECE that of the next seed.

    One piece is in memory at a time.
    """
    left, piece = int(seconds * rate), int(PIECE * rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        while left > 0:
            samples = _voice(min(left, piece), rate, seed)
            file.writeframes(np.rint(samples * np.iinfo(np.int16).max).astype("<i2").tobytes())
            left, seed = left - piece, seed + 1
