"""WAV files without a dependency: PCM of 8 to 32 bits and IEEE floats (RIFF, Microsoft's WAVEFORMATEX).

Other codings inside WAV (A-law, ADPCM, ...) are left to the audio library.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN = (0, 0xFFFFFFFF)  # sizes of a file that was written to a pipe: its data ends where the file does
BLOCK = 1 << 18  # bytes that are read at once, or one frame
LONGEST_FORMAT = 40  # bytes of a format that is read here


@dataclass(frozen=True, slots=True)
class WaveFormat:
    """How samples are stored, and how many bytes of them; None: to the end of the file."""

    rate: int
    channels: int
    is_float: bool
    bits: int
    size: int | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8


def read_header(file: BinaryIO) -> WaveFormat | None:
    """The format of a WAV file, left at its first sample; None where it is none, or one that is not read here.

    Raises:
        MisuseError: it is a WAV file without a format or without samples.
    """
    riff = file.read(12)
    if len(riff) < 12 or riff[:4] != b"RIFF" or riff[8:] != b"WAVE":  # noqa: PLR2004
        return None
    fields: tuple[int, ...] | None = None
    while len(header := file.read(8)) == 8:  # noqa: PLR2004
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"data":
            if fields is None:
                break
            tag, channels, rate, bits = fields
            supported = (tag == PCM and bits in {8, 16, 24, 32}) or (tag == FLOAT and bits in {32, 64})
            if not supported or not channels or not rate:
                return None
            return WaveFormat(rate, channels, tag == FLOAT, bits, None if size in UNKNOWN else size)
        body = file.read(min(size, LONGEST_FORMAT)) if name == b"fmt " else b""
        file.seek(size + size % 2 - len(body), io.SEEK_CUR)
        if name == b"fmt " and len(body) >= 16:  # noqa: PLR2004
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if tag == EXTENSIBLE and len(body) >= 26:  # noqa: PLR2004
                tag = struct.unpack("<H", body[24:26])[0]  # the sub-format begins with the coding
            fields = (tag, channels, rate, bits)
    raise MisuseError("it is a WAV file without a format or without samples")


def read_samples(file: BinaryIO, form: WaveFormat) -> Iterator[NDArray[np.float32]]:
    """Blocks of samples, float32 [frames], from -1 to 1; the mean of all channels.

    Raises:
        MisuseError: the file ends before the samples that its header states.
    """
    left, block = form.size, max(BLOCK // form.frame_bytes, 1) * form.frame_bytes
    while left is None or left > 0:
        wanted = block if left is None else min(left, block)
        data = file.read(wanted)
        if left is not None:
            left -= len(data)
            if len(data) < wanted:
                raise MisuseError(f"it ends {left:,} bytes before the samples that its header states; it was cut off")
        if whole := len(data) // form.frame_bytes * form.frame_bytes:
            frames = _floats(data[:whole], form).reshape(-1, form.channels)
            yield np.asarray(frames.mean(axis=1), np.float32)
        if len(data) < wanted:
            return


def _floats(data: bytes, form: WaveFormat) -> NDArray[np.float32]:
    if form.is_float:
        return np.frombuffer(data, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:  # noqa: PLR2004 - the only unsigned one
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if form.bits == 24:  # noqa: PLR2004 - numpy has no such type: the three bytes become the upper ones of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4").reshape(-1).astype(np.float32) / np.float32(1 << 31)
    return np.frombuffer(data, f"<i{form.bits // 8}").astype(np.float32) / np.float32(1 << (form.bits - 1))
