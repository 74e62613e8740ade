"""Buffers, streams, events and captured graphs of piston.runtime.backends.cuda_driver on a real device."""

import time

import numpy as np
import pytest

from piston.core.errors import DeviceMemoryError


def test_bytes_go_to_the_device_and_back(cuda, device):
    stream, source, goal = cuda.stream(), *(cuda.pinned((1000,), np.int64, "a test") for _ in range(2))
    one, two = (cuda.allocate(8000, "a test") for _ in range(2))
    source.array[:] = np.arange(1000)
    stream.upload(one.address, source.address, 8000)
    stream.copy(two.address, one.address, 8000)
    stream.download(goal.address, two.address, 8000)
    stream.synchronize()
    np.testing.assert_array_equal(goal.array, source.array)
    for part in (source, goal, one, two, stream):
        part.close()


def test_addresses_are_aligned_as_tensorrt_wants_them(cuda, device):
    buffers = [cuda.allocate(size, "a test") for size in (1, 100, 4097)]
    assert not [buffer for buffer in buffers if buffer.address % 256]
    for buffer in buffers:
        buffer.close()


def test_a_captured_graph_repeats_its_work(cuda, device, finding):
    stream, event = cuda.stream(), cuda.event()
    source, goal = (cuda.pinned((1,), np.int64, "a test") for _ in range(2))
    buffer = cuda.allocate(8, "a test")
    with stream.capturing() as capture:
        stream.upload(buffer.address, source.address, 8)
        stream.download(goal.address, buffer.address, 8)
    for value in (3, 4):
        source.array[0] = value
        capture.graph.launch(stream)
        stream.record(event)
        event.wait()
        assert goal.array[0] == value
    began = time.perf_counter()
    for _ in range(1000):
        capture.graph.launch(stream)
    stream.synchronize()
    finding("e", "launch of a graph of two copies", f"{(time.perf_counter() - began) * 1e3:.1f} us")
    for part in (source, goal, buffer, event, capture.graph, stream):
        part.close()


def test_more_than_there_is_is_refused_with_both_numbers_and_the_next_call_works(cuda, device):
    with pytest.raises(DeviceMemoryError, match=r"needs [\d.,]+ MB .* MB are free"):
        cuda.allocate(device.total_bytes * 2, "A test")
    cuda.allocate(1000, "a test").close()
    cuda.stream().close()
