"""The GPU through `cuda-bindings`: memory, copies, a stream, captured graphs. Thin: each method is one or two calls.

Importing this module needs neither the package nor a driver; `Cuda.open` does, and its error names what is missing.
CUDA's status codes become EngineError, NoDeviceError or DeviceMemoryError here and nowhere else.
"""

import contextlib
import ctypes
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from piston.core.errors import DeviceMemoryError, EngineError, MissingExtraError, MisuseError, NoDeviceError

DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Properties of a GPU; memory in bytes, at the time of the query."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    free_bytes: int
    total_bytes: int

    @property
    def sm(self) -> str:
        """The compute capability as targets spell it, such as sm89."""
        return "sm{}{}".format(*self.compute_capability)


class Cuda:
    """One device and the calls made to it; `runtime` is cuda.bindings.runtime or a test double."""

    def __init__(self, runtime: Any, index: int = 0) -> None:
        self.runtime = runtime
        self.index = index

    @classmethod
    def open(cls, index: int = 0) -> Self:
        """Select a device.

        Raises:
            NoDeviceError: there is no driver, or it does not have this device.
            MissingExtraError: cuda-bindings is not installed.
        """
        if not has_driver():
            raise NoDeviceError("There is no CUDA driver on this machine; use a bundle with an ort-cpu engine.")
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise MissingExtraError("cuda-bindings is not installed; pip install 'piston[cuda]'.") from None
        return cls.of(runtime, index)

    @classmethod
    def of(cls, runtime: Any, index: int = 0) -> Self:
        """Select a device through a given runtime module; raises NoDeviceError."""
        cuda = cls(runtime, index)
        status, count = runtime.cudaGetDeviceCount()
        if status != runtime.cudaError_t.cudaSuccess or not count:
            raise NoDeviceError(f"The CUDA driver offers no device: {cuda.describe(status)}; check nvidia-smi.")
        if not 0 <= index < count:
            raise MisuseError(f"There is no CUDA device {index}; there are {count}.")
        cuda.call("cudaSetDevice", index)
        return cuda

    def device(self) -> Device:
        """Name, compute capability and memory of the device."""
        properties = self.call("cudaGetDeviceProperties", self.index)
        free, total = self.memory()
        return Device(
            index=self.index,
            name=bytes(properties.name).split(b"\0")[0].decode("utf-8", "replace"),
            compute_capability=(int(properties.major), int(properties.minor)),
            free_bytes=free,
            total_bytes=total,
        )

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, nbytes: int, purpose: str) -> "DeviceBuffer":
        """Allocate device memory; raises DeviceMemoryError with the requested size, its purpose and the free memory."""
        return DeviceBuffer(self, int(self._taken("cudaMalloc", nbytes, purpose, "device")), nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike, purpose: str) -> "PinnedArray":
        """Allocate zeroed page-locked host memory; raises as `allocate` does."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(self._taken("cudaMallocHost", nbytes, purpose, "page-locked host"))
        return PinnedArray(self, address, shape, dtype)

    def stream(self) -> "Stream":
        """A new stream, which does not wait for the default stream."""
        return Stream(self, self.call("cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking))

    def event(self) -> "Event":
        """A new event, which the host can wait for."""
        return Event(self, self.call("cudaEventCreateWithFlags", self.runtime.cudaEventDisableTiming))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; raises EngineError unless it succeeds."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{name} failed: {self.describe(status)}.")
        return values[0] if len(values) == 1 else tuple(values)

    def describe(self, status: Any) -> str:
        """Name and text of a status, such as "cudaErrorNoDevice (no CUDA-capable device is detected)"."""
        name, text = (getattr(self.runtime, f"cudaGetError{part}")(status)[1] for part in ("Name", "String"))
        return f"{name.decode()} ({text.decode()})"

    def _taken(self, name: str, nbytes: int, purpose: str, kind: str) -> Any:
        status, address = getattr(self.runtime, name)(nbytes)
        if status == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            self.runtime.cudaGetLastError()  # otherwise the next call that checks would report it again
            free, total = self.memory()
            raise DeviceMemoryError(
                f"{purpose} needs {nbytes / 1e6:,.1f} MB of {kind} memory; of the device's {total / 1e6:,.1f} MB "
                f"{free / 1e6:,.1f} MB are free; load with a smaller max_batch, or end other processes on the GPU."
            )
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{name} of {nbytes:,} bytes for {purpose} failed: {self.describe(status)}.")
        return address


class DeviceBuffer:
    """Device memory; `close` frees it and may be called twice."""

    def __init__(self, cuda: Cuda, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self._cuda = cuda

    def close(self) -> None:
        """Free it; no work that uses the address may be under way."""
        if self.address:
            address, self.address = self.address, 0
            self._cuda.call("cudaFree", address)


class PinnedArray:
    """Page-locked host memory seen as a numpy array, which must not outlive `close`."""

    def __init__(self, cuda: Cuda, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.address = address
        self.array: NDArray[Any] = np.frombuffer(
            memoryview((ctypes.c_char * nbytes).from_address(address)), dtype
        ).reshape(shape)
        self.array[...] = 0
        self._cuda = cuda

    def address_of(self, *index: int) -> int:
        """Address of the element, or of the row, at `index`."""
        return self.address + sum(i * s for i, s in zip(index, self.array.strides, strict=False))

    def close(self) -> None:
        """Free it; no copy to or from it may be under way."""
        if self.address:
            address, self.address = self.address, 0
            self.array = np.empty(0, self.array.dtype)
            self._cuda.call("cudaFreeHost", address)


class Stream:
    """A queue of device work; copies return before they are done."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        self._cuda = cuda

    def __int__(self) -> int:
        """The address that TensorRT takes for a stream."""
        return int(self.handle)

    def upload(self, device: int, host: int, nbytes: int) -> None:
        """Copy from page-locked host memory to the device."""
        self._copy(device, host, nbytes, self._cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, host: int, device: int, nbytes: int) -> None:
        """Copy from the device to page-locked host memory."""
        self._copy(host, device, nbytes, self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy(self, goal: int, source: int, nbytes: int) -> None:
        """Copy within the device."""
        self._copy(goal, source, nbytes, self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def zero(self, device: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        self._cuda.call("cudaMemsetAsync", device, 0, nbytes, self.handle)

    def record(self, event: "Event") -> None:
        """Record the event at this place in the stream."""
        self._cuda.call("cudaEventRecord", event.handle, self.handle)

    def synchronize(self) -> None:
        """Wait until everything is done; an error of earlier work is raised here."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    @contextlib.contextmanager
    def capturing(self) -> Iterator["Capture"]:
        """Capture the work that the block puts into the stream without running it; see `Capture.graph`.

        An error inside ends the capture, so that the stream can be used again.
        """
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self.handle, mode)
        capture = Capture()
        try:
            yield capture
        except BaseException:
            status, recorded = self._cuda.runtime.cudaStreamEndCapture(self.handle)
            if status == self._cuda.runtime.cudaError_t.cudaSuccess:
                self._cuda.runtime.cudaGraphDestroy(recorded)
            self._cuda.runtime.cudaGetLastError()
            raise
        capture.graph = Graph(self._cuda, self._cuda.call("cudaStreamEndCapture", self.handle))

    def close(self) -> None:
        """Destroy it; CUDA finishes work under way first."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._cuda.call("cudaStreamDestroy", handle)

    def _copy(self, goal: int, source: int, nbytes: int, kind: Any) -> None:
        self._cuda.call("cudaMemcpyAsync", goal, source, nbytes, kind, self.handle)


class Capture:
    """Holds the captured graph after `Stream.capturing`."""

    graph: "Graph"


class Graph:
    """A captured sequence of work that is launched as one."""

    def __init__(self, cuda: Cuda, recorded: Any) -> None:
        self._cuda = cuda
        self._executable: Any = None
        try:
            self._executable = cuda.call("cudaGraphInstantiate", recorded, 0)
        finally:
            cuda.call("cudaGraphDestroy", recorded)  # the executable does not need the graph

    def launch(self, stream: Stream) -> None:
        """Put the recorded work into a stream."""
        self._cuda.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Free it; no launch of it may be under way."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            self._cuda.call("cudaGraphExecDestroy", executable)


class Event:
    """A mark in a stream."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        self._cuda = cuda

    def wait(self) -> None:
        """Wait on the host until the stream has passed the event."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def close(self) -> None:
        """Destroy it."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._cuda.call("cudaEventDestroy", handle)


def warn_not_captured(problem: object) -> None:
    """Warn that steps run without CUDA graphs from now on, and why."""
    warnings.warn(f"Decoding continues without CUDA graphs, which is slower: {problem}", RuntimeWarning, 3)


def has_driver() -> bool:
    """Whether the CUDA driver's library can be loaded; it may still find no device."""
    for name in DRIVERS:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False
