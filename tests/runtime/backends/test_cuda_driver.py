import subprocess
import sys

import numpy as np
import pytest
from fake_cuda import FakeCudaRuntime, cudaError_t

from piston.core.errors import DeviceMemoryError, EngineError, MisuseError, NoDeviceError
from piston.runtime.backends.cuda_driver import Cuda, has_driver


@pytest.fixture
def runtime():
    return FakeCudaRuntime(total=1_000_000)


@pytest.fixture
def cuda(runtime):
    return Cuda.of(runtime)


def filled(cuda, values):
    array = cuda.pinned((len(values),), np.int64, "a test")
    array.array[:] = values
    return array


def test_the_module_is_imported_without_cuda_bindings():
    names = "piston.runtime.backends.cuda_driver, piston.runtime.backends.tensorrt.engine"
    code = f"import sys; sys.modules['cuda'] = None; import {names}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_machine_without_a_driver_says_so():
    if has_driver():
        pytest.skip("there is a CUDA driver")
    with pytest.raises(NoDeviceError, match="no CUDA driver"):
        Cuda.open()


def test_a_driver_without_a_device_says_what_cuda_says():
    with pytest.raises(NoDeviceError, match=r"cudaErrorNoDevice .*check nvidia-smi"):
        Cuda.of(FakeCudaRuntime(count=0))


def test_a_device_that_is_not_there_is_misuse():
    with pytest.raises(MisuseError, match="no CUDA device 3; there are 1"):
        Cuda.of(FakeCudaRuntime(), 3)


def test_a_device_is_described():
    device = Cuda.of(FakeCudaRuntime(total=500, compute_capability=(12, 1))).device()
    assert (device.name, device.sm, device.free_bytes, device.total_bytes) == ("NVIDIA Fake", "sm121", 500, 500)


def test_out_of_memory_tells_what_is_wanted_for_what_and_what_is_free(cuda):
    cuda.allocate(400_000, "Weights")
    with pytest.raises(DeviceMemoryError, match=r"The cache needs 0\.7 MB .*of the device's 1\.0 MB 0\.6 MB are free"):
        cuda.allocate(700_000, "The cache")
    assert issubclass(DeviceMemoryError, MemoryError)


def test_an_error_left_by_a_failed_allocation_is_cleared(cuda, runtime):
    with pytest.raises(DeviceMemoryError):
        cuda.allocate(2_000_000, "Too much")
    assert runtime.names()[-2:] == ["cudaGetLastError", "cudaMemGetInfo"]


def test_other_failures_have_the_call_and_the_text_of_cuda(cuda, runtime):
    runtime.fail["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    stream = cuda.stream()
    with pytest.raises(EngineError, match=r"cudaStreamSynchronize failed: cudaErrorIllegalAddress \(an illegal"):
        stream.synchronize()


def test_bytes_go_to_the_device_and_back_once_the_stream_is_waited_for(cuda):
    stream, buffer, other = cuda.stream(), cuda.allocate(24, "a test"), cuda.allocate(24, "a test")
    there, back = filled(cuda, [5, 6, 7]), filled(cuda, [0, 0, 0])
    stream.upload(buffer.address, there.address, 24)
    stream.copy(other.address, buffer.address, 24)
    stream.download(back.address, other.address, 24)
    assert back.array.tolist() == [0, 0, 0]
    stream.synchronize()
    assert back.array.tolist() == [5, 6, 7]


def test_an_event_waits_for_what_came_before_it_alone(cuda):
    stream, event, buffer = cuda.stream(), cuda.event(), cuda.allocate(8, "a test")
    one, two, found = filled(cuda, [1]), filled(cuda, [2]), filled(cuda, [0])
    stream.upload(buffer.address, one.address, 8)
    stream.download(found.address, buffer.address, 8)
    stream.record(event)
    stream.upload(buffer.address, two.address, 8)
    stream.download(found.address, buffer.address, 8)
    event.wait()
    assert found.array.tolist() == [1]


def test_a_captured_graph_does_its_work_at_each_launch_and_not_before(cuda):
    stream, buffer, source, found = cuda.stream(), cuda.allocate(8, "a test"), filled(cuda, [1]), filled(cuda, [0])
    with stream.capturing() as capture:
        stream.upload(buffer.address, source.address, 8)
        stream.download(found.address, buffer.address, 8)
    stream.synchronize()
    assert found.array.tolist() == [0]
    for value in (3, 4):
        source.array[0] = value
        capture.graph.launch(stream)
        stream.synchronize()
        assert found.array.tolist() == [value]


def test_an_error_while_capturing_ends_the_capture_and_leaks_no_graph(cuda, runtime):
    stream = cuda.stream()
    with pytest.raises(EngineError, match="boom"), stream.capturing():
        raise EngineError("boom")
    stream.synchronize()
    assert runtime.graphs == {}


def test_a_graph_that_cannot_be_instantiated_leaks_nothing(cuda, runtime):
    runtime.fail["cudaGraphInstantiate"] = cudaError_t.cudaErrorStreamCaptureUnsupported
    with pytest.raises(EngineError, match="cudaGraphInstantiate"), cuda.stream().capturing():
        pass
    assert runtime.graphs == {}


def test_everything_is_freed_once(cuda, runtime):
    stream = cuda.stream()
    with stream.capturing() as capture:
        pass
    parts = [cuda.allocate(8, "a test"), filled(cuda, [1]), cuda.event(), capture.graph, stream]
    for part in parts + parts:
        part.close()
    assert runtime.leaks() == 0


def test_rows_of_a_pinned_array_have_their_own_addresses(cuda):
    array = cuda.pinned((3, 4), np.int64, "a test")
    assert array.address_of(2) == array.array[2:].ctypes.data
    assert array.address_of(1, 3) == array.array[1:, 3:].ctypes.data
