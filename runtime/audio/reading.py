"""Audio of any kind as blocks of mono float32 samples at the rate that the model reads.

WAV files and arrays need nothing beyond numpy; FLAC, MP3, Ogg, M4A and the sound of videos are read with PyAV, which
brings FFmpeg's libraries (`piston[audio]`).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from piston.core.data_files import read_bytes
from piston.core.errors import MissingExtraError, MisuseError
from piston.runtime.audio.resample import Samples, resampled
from piston.runtime.audio.wave_file import read_header, read_samples

Audio = Annotated[
    str | Path | bytes | tuple[Any, int], "a path, the bytes of a file, or a tuple of samples and their rate"
]
RATES = (1_000, 768_000)  # samples a second that are believed
BLOCK = 1 << 16


def read_audio(audio: Audio, rate: int) -> Iterator[Samples]:
    """Blocks of float32 [samples], mono, `rate` a second, from -1 to 1; can be called again for the same audio.

    Several channels become their mean. Of a video the first sound track is read.

    Raises:
        MisuseError: there is no such file, it is no audio that can be read, it is cut off, or it has no samples.
        MissingExtraError: it needs PyAV, which is not installed.
    """
    is_empty = True
    for block in _read(audio, rate):
        if not np.isfinite(block).all():
            raise MisuseError(f"{_name(audio)} has samples that are no numbers; they must be from -1 to 1.")
        is_empty = is_empty and not block.size
        yield block
    if is_empty:
        raise MisuseError(f"{_name(audio)} has no samples.")


def rereadable(audio: Audio) -> Audio:
    """What can be read twice: the bytes of a pipe or a device are taken into memory; files stay where they are.

    Raises:
        MisuseError: it cannot be read.
    """
    if isinstance(audio, bytes | tuple) or not Path(audio).exists() or Path(audio).is_file():
        return audio
    return read_bytes(Path(audio))


def _read(audio: Audio, rate: int) -> Iterator[Samples]:
    if isinstance(audio, tuple):
        samples, given = audio
        try:
            _check_rate(given)
        except MisuseError as problem:
            raise MisuseError(f"{_name(audio)} cannot be read: {problem}.") from None
        yield from resampled(_blocks(_mono(samples)), given, rate)
        return
    with _opened(audio) as file:
        if not file.read(1):
            raise MisuseError(f"{_name(audio)} is empty; give a file with sound.")
        file.seek(0)
        try:
            form = read_header(file)
            if form is not None:
                _check_rate(form.rate)
                yield from resampled(read_samples(file, form), form.rate, rate)
                return
        except MisuseError as problem:
            raise MisuseError(f"{_name(audio)} cannot be read: {problem}.") from None
        file.seek(0)
        yield from _decoded(file, audio, rate)


def _decoded(file: BinaryIO, audio: Audio, rate: int) -> Iterator[Samples]:
    """What FFmpeg's decoders read."""
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            f"{_name(audio)} is not a plain WAV file; to read other audio, pip install 'piston[audio]'."
        ) from None
    try:
        with av.open(file, "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise MisuseError(f"{_name(audio)} has no sound track.")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(audio=0):
                for part in resampler.resample(frame):
                    yield part.to_ndarray().reshape(-1).astype(np.float32)
            for part in resampler.resample(None):
                yield part.to_ndarray().reshape(-1).astype(np.float32)
    except av.error.FFmpegError as problem:
        raise MisuseError(
            f"{_name(audio)} is no audio that can be read, or it is damaged ({problem.strerror})."
        ) from None


@contextmanager
def _opened(audio: str | Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(audio, bytes):
        yield io.BytesIO(audio)
        return
    try:
        file = Path(audio).open("rb")  # noqa: SIM115 - closed below; errors of what reads it are not of opening
    except OSError as problem:
        raise MisuseError(f"Cannot read {audio}: {problem.strerror}.") from None
    with file:
        yield file


def _mono(samples: NDArray[Any]) -> Samples:
    """Samples [samples] or [channels, samples] of floats, or of integers of full scale, as float32 [samples]."""
    samples = np.asarray(samples)
    if samples.ndim not in {1, 2} or samples.dtype.kind not in "fi":
        raise MisuseError(
            f"Audio is an array of {samples.dtype} {list(samples.shape)}; it must be [samples] or [channels, samples] "
            "of floats from -1 to 1, or of signed integers."
        )
    scale = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max) + 1
    floats = samples.astype(np.float32) / np.float32(scale)
    return floats if floats.ndim == 1 else floats.mean(axis=0)


def _blocks(samples: Samples) -> Iterator[Samples]:
    for start in range(0, len(samples), BLOCK):
        yield samples[start : start + BLOCK]


def _check_rate(rate: int) -> None:
    if not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise MisuseError(f"it has {rate!r} samples a second; they must be from {RATES[0]:,} to {RATES[1]:,}")


def _name(audio: Audio) -> str:
    return str(audio) if isinstance(audio, str | Path) else "The audio"
