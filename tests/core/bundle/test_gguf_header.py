"""The header of a GGUF file: what the gguf package wrote is read, what cannot be is told before memory is taken."""

import struct
import tracemalloc

import numpy as np
import pytest

from piston.core.bundle.gguf_header import BLOCKS, GgufHeader
from piston.core.errors import CheckpointError

KEYS = {"a.number": 7, "a.fraction": 0.5, "a.flag": True, "a.text": "Grüße", "a.list": ["x", "yz"], "a.ids": [3, -1]}


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf")


@pytest.fixture
def path(tmp_path):
    pytest.importorskip("torch")
    from gguf_files import write_raw

    write_raw(tmp_path / "m.gguf", "llama", KEYS, {"one": np.ones((3, 5)), "two": np.zeros(4)})
    return tmp_path / "m.gguf"


def test_keys_and_tensors_are_read_as_the_gguf_package_reads_them(path, gguf):
    header, reader = GgufHeader.read(path), gguf.GGUFReader(path)
    header.check_data()
    assert {key: header.keys[key] for key in KEYS} == KEYS
    for tensor in reader.tensors:
        found = header.tensors[tensor.name]
        assert found.shape == tuple(int(size) for size in tensor.shape)
        assert (found.size, header.data_start + found.offset) == (tensor.n_bytes, tensor.data_offset)


def test_sizes_of_storage_types_are_those_of_the_gguf_package(gguf):
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == BLOCKS


def refusal(path):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            GgufHeader.read(path).check_data()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(version=3, tensors=0, keys=0, rest=b""):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", dims=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


LONG = 2**60
DAMAGED = {
    "another magic": (b"GGML" + bytes(20), "start with GGUF"),
    "nothing": (b"", "ends within"),
    "a version of tomorrow": (header(version=4), "version 4"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "2^60 keys": (header(keys=LONG), "keys"),
    "2^60 tensors": (header(tensors=LONG), "tensors"),
    "a key of 2^60 bytes": (header(keys=1, rest=struct.pack("<Q", LONG) + bytes(40)), "a string"),
    "a key of more bytes than there are": (header(keys=1, rest=struct.pack("<Q", 90) + bytes(40)), "ends within"),
    "a list of 2^60 texts": (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, LONG)), "elements"),
    "a list of 2^60 numbers": (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 10, LONG)), "elements"),
    "a list of lists": (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(99)), "type 9"),
    "a key twice": (header(keys=2, rest=(text(b"k") + struct.pack("<II", 4, 1)) * 2), "k occurs twice"),
    "a tensor twice": (header(tensors=2, rest=tensor() * 2), "t occurs twice"),
    "a tensor of 2^60 dimensions": (header(tensors=1, rest=text(b"t") + struct.pack("<I", 2**30) + bytes(40)), "dim"),
    "an alignment of 0": (
        header(keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment"
    ),
    "a tensor beyond the end": (header(tensors=1, rest=tensor(dims=(LONG,)) + bytes(64)), "truncated"),
    "a tensor that starts beyond the end": (header(tensors=1, rest=tensor(offset=LONG) + bytes(64)), "truncated"),
    "tensors on top of one another": (
        header(tensors=2, rest=tensor() + tensor(b"u", offset=8) + bytes(99)), "overlap"
    ),
    "an unknown storage type": (header(tensors=1, rest=tensor(kind=99) + bytes(99)), "storage type 99"),
    "rows that are no whole blocks": (header(tensors=1, rest=tensor(dims=(31,), kind=8) + bytes(99)), "not a multiple"),
    "a name that is not UTF-8": (header(tensors=1, rest=tensor(b"\xff") + bytes(99)), "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_and_takes_no_memory(tmp_path, case):
    data, told = DAMAGED[case]
    (tmp_path / "m.gguf").write_bytes(data)
    assert told in refusal(tmp_path / "m.gguf")


def test_a_file_cut_at_any_byte_is_told(path):
    whole = path.read_bytes()
    last = max(GgufHeader.read(path).tensors.values(), key=lambda tensor: tensor.offset)
    end = GgufHeader.read(path).data_start + last.offset + last.size
    for size in {*range(0, end, 7), end - 1}:
        path.write_bytes(whole[:size])
        refusal(path)
