import contextlib
import io
import zipfile

import numpy as np
import pytest

from piston.core.arrays import arrays_of, npz_of
from piston.core.errors import MisuseError


def compressed():
    data = io.BytesIO()
    np.savez_compressed(data, x=np.arange(500, dtype=np.float32))
    return bytearray(data.getvalue())


def damaged(place, value):
    data = compressed()
    data[place % len(data)] = value
    return bytes(data)


def beyond_memory():
    """An array that says it has 10^15 numbers."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return data.getvalue()


def test_arrays_are_those_that_were_written():
    found = arrays_of(npz_of({"x": np.arange(3), "y": np.float32(2)}), "data.npz")
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].shape == ()


@pytest.mark.parametrize("data", [b"", b"a text", b"PK"])
def test_what_is_no_archive_is_refused_with_the_remedy(data):
    with pytest.raises(MisuseError, match=r"^data.npz is no .npz file of arrays; write it by numpy.savez\("):
        arrays_of(data, "data.npz")


@pytest.mark.parametrize("data", [b"PK\x03\x04", beyond_memory()], ids=["cut", "beyond the memory"])
def test_bytes_that_are_no_arrays_are_refused_in_a_line_that_names_the_file(data):
    with pytest.raises(MisuseError, match=r"^data.npz is no .npz file of arrays \(.*\)\.$"):
        arrays_of(data, "data.npz")


def test_no_byte_of_a_file_can_be_changed_so_that_another_error_is_raised():
    for place in range(len(compressed())):
        for value in (0, 1, 255):
            with contextlib.suppress(MisuseError):
                arrays_of(damaged(place, value), "data.npz")


def test_what_a_compressed_file_holds_is_bounded_before_it_is_read():
    data = io.BytesIO()
    np.savez_compressed(data, x=np.zeros(10**6, np.float32))
    assert len(data.getvalue()) < 10**5
    with pytest.raises(MisuseError, match=r"The arrays of inputs have 4,000,\d+ bytes, more than 100,000; send less"):
        arrays_of(data.getvalue(), "inputs", 100_000)
    assert arrays_of(data.getvalue(), "inputs", 5_000_000)["x"].shape == (10**6,)
