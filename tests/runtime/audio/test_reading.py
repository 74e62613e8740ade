import io
import struct
import tracemalloc
import wave

import numpy as np
import pytest

from piston.core.errors import MisuseError
from piston.runtime.audio.reading import read_audio

RATE = 16_000
SAMPLES = (np.sin(np.arange(4_000) / 20) * 0.5).astype(np.float32)


def wav(samples, *, rate=RATE, bits=16, channels=1, tag=1, size=None, extensible=False):
    """A WAV file by hand; samples are raw bytes."""
    body = struct.pack(
        "<HHIIHH",
        0xFFFE if extensible else tag,
        channels,
        rate,
        rate * channels * bits // 8 % 2**32,
        channels * bits // 8 % 2**16,
        bits,
    )
    if extensible:
        body += struct.pack("<HHIH", 22, bits, 0, tag) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = b"fmt " + struct.pack("<I", len(body)) + body
    chunks += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of an odd size, padded
    chunks += b"data" + struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def read(audio, rate=RATE):
    return np.concatenate(list(read_audio(audio, rate)))


def encoded(name, rate=RATE):
    """Two seconds of a tone as a file of another kind, by FFmpeg's encoders."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    tone = (np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate) * 0.5).astype(np.float32)
    formats = {"flac": "flac", "mp3": "mp3", "ogg": "libopus", "m4a": "aac"}
    with av.open(file, "w", format="mp4" if name == "m4a" else name) as container:
        stream = container.add_stream(formats[name], rate=48_000 if name == "ogg" else rate)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=stream.rate, frame_size=stream.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue(), tone


def test_a_wav_file_of_the_standard_library_is_read(tmp_path):
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((SAMPLES * 32768).astype("<i2").tobytes())
    for audio in (path, str(path), path.read_bytes()):
        np.testing.assert_allclose(read(audio), SAMPLES, atol=1 / 32768)


@pytest.mark.parametrize(
    ("bits", "tag", "raw"),
    [
        (8, 1, (SAMPLES * 128 + 128).astype(np.uint8).tobytes()),
        (24, 1, (SAMPLES * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()),
        (32, 1, (SAMPLES.astype(np.float64) * 2**31).astype("<i4").tobytes()),
        (32, 3, SAMPLES.astype("<f4").tobytes()),
        (64, 3, SAMPLES.astype("<f8").tobytes()),
    ],
)
@pytest.mark.parametrize("extensible", [False, True])
def test_every_width_of_samples_gives_the_same_sound(bits, tag, raw, extensible):
    np.testing.assert_allclose(
        read(wav(raw, bits=bits, tag=tag, extensible=extensible)), SAMPLES, atol=2 / 2 ** min(bits, 24)
    )


def test_channels_become_their_mean():
    stereo = np.stack([SAMPLES, np.zeros_like(SAMPLES)], axis=1).astype("<f4").tobytes()
    np.testing.assert_allclose(read(wav(stereo, bits=32, tag=3, channels=2)), SAMPLES / 2, atol=1e-7)
    np.testing.assert_allclose(read((np.stack([SAMPLES, -SAMPLES]), RATE)), 0, atol=1e-7)


def test_arrays_of_integers_are_of_full_scale():
    np.testing.assert_allclose(read(((SAMPLES * 32768).astype(np.int16), RATE)), SAMPLES, atol=1 / 32768)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_file_written_to_a_pipe_is_read_to_its_end(size):
    np.testing.assert_array_equal(read(wav(SAMPLES.astype("<f4").tobytes(), bits=32, tag=3, size=size)), SAMPLES)


def test_a_header_of_huge_sizes_takes_no_memory(tmp_path):
    path = tmp_path / "a.wav"
    sizes = {"bits": 64, "tag": 3, "channels": 65_535, "size": 0xFFFFFFFF}
    path.write_bytes(wav(np.full(65_535, 0.5).tobytes(), **sizes).replace(b"LIST\x03\0\0\0", b"LIST\xff\xff\xff\0"))
    tracemalloc.start()
    with pytest.raises(MisuseError, match="without a format or without samples"):
        read(path)  # the chunk before the samples ends beyond the file
    path.write_bytes(wav(np.full(65_535, 0.5).tobytes(), **sizes))
    np.testing.assert_array_equal(read(path), [0.5])
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_another_rate_is_converted():
    assert abs(len(read(wav(SAMPLES.astype("<f4").tobytes(), bits=32, tag=3, rate=8_000))) - 8_000) <= 1


@pytest.mark.parametrize("name", ["flac", "mp3", "ogg", "m4a"])
def test_other_kinds_of_files_are_read(name, tmp_path):
    data, tone = encoded(name)
    path = tmp_path / f"tone.{name}"
    path.write_bytes(data)
    found = read(path)
    middle = slice(8_000, 24_000)
    assert abs(len(found) - len(tone)) < 3_000  # lossy coders pad both ends
    assert np.abs(np.fft.rfft(found[middle])).argmax() == np.abs(np.fft.rfft(tone[middle])).argmax()
    assert found[middle].std() == pytest.approx(tone[middle].std(), rel=0.05)


def test_a_video_without_sound_is_refused():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(MisuseError, match="no sound track"):
        read(file.getvalue())


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (b"", "The audio is empty; give a file with sound"),
        (b"these are no samples at all" * 9, "no audio that can be read"),
        (wav(SAMPLES.astype("<f4").tobytes()[:-40], bits=32, tag=3, size=16_000), "cut off"),
        (wav(b"", size=0), "no samples"),
        (b"RIFF\x10\0\0\0WAVEdata\x04\0\0\0abcd", "without a format"),
        (wav(SAMPLES.tobytes(), bits=32, tag=3, rate=3), "samples a second"),
        ((np.array([np.nan], np.float32), RATE), "no numbers"),
        ((np.zeros((1, 2, 3)), RATE), "must be"),
        ((np.zeros(5, np.float32), 0), "samples a second"),
        ("/nowhere/at/all.wav", "Cannot read"),
    ],
)
def test_what_is_no_audio_is_refused_in_a_line(audio, reason):
    with pytest.raises(MisuseError, match=reason):
        read(audio)


def test_a_file_that_needs_ffmpeg_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"piston\[audio\]"):
        read(b"fLaC and so on")
