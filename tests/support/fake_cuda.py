# ruff: noqa: N801, N802, N803, N815 - the names are CUDA's
"""cuda.bindings.runtime without a GPU: records every call, and really moves bytes, but only when it is waited for.

Device memory has addresses of its own, so that a pointer of the wrong side, out of bounds or freed is an error. What is
put into a stream happens at a synchronization and not before: a host that reads too early reads old values.
"""

import enum
from collections import deque
from types import SimpleNamespace

import numpy as np

DEVICE_BASE, PAGE = 1 << 46, 1 << 12


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


TEXTS = {2: b"out of memory", 35: b"CUDA driver version is insufficient", 700: b"an illegal memory access"}
OK = cudaError_t.cudaSuccess


class FakeStream:
    def __init__(self, handle):
        self.handle, self.queue, self.captured = handle, deque(), None

    def __int__(self):
        return self.handle

    def put(self, work):
        (self.queue if self.captured is None else self.captured).append(work)

    def drain(self, until=None):
        while self.queue:
            work = self.queue.popleft()
            if work is until:
                return
            work()


class FakeCudaRuntime:
    """The functions that piston.runtime.backends.cuda_driver calls.

    `fail[name]` makes the next call of a name answer that status.
    """

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2

    def __init__(self, total=1 << 30, compute_capability=(8, 9), count=1):
        self.total, self.compute_capability, self.count = total, compute_capability, count
        self.calls, self.fail = [], {}
        self.device, self.pinned, self.streams, self.graphs, self.executables, self.events = {}, {}, {}, {}, {}, {}
        self.next_address, self.next_handle = DEVICE_BASE, 1

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def recorded(*arguments):
            self.calls.append((name, arguments))
            if name in self.fail:
                status = self.fail.pop(name)
                if name == "cudaStreamEndCapture":
                    arguments[0].captured = None  # a capture ends, whatever came of it
                return (status, *([None] * (ARITY[name] - 1)))
            return value(*arguments)

        return recorded

    # -- what tests ask

    def names(self):
        return [name for name, _ in self.calls]

    def leaks(self):
        held = (self.device, self.pinned, self.streams, self.graphs, self.executables, self.events)
        return sum(len(kind) for kind in held)

    def used(self):
        return sum(array.nbytes for array in self.device.values())

    def view(self, address, nbytes, *, on_device=True):
        """The bytes at an address, or AssertionError if they are not all of one live allocation."""
        for base, array in (self.device if on_device else self.pinned).items():
            if base <= address and address + nbytes <= base + array.nbytes:
                return array[address - base : address - base + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address:#x} are not {'device' if on_device else 'pinned'} memory")

    # -- what is called

    def cudaGetDeviceCount(self):
        return (OK, self.count) if self.count else (cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device):
        return (OK,)

    def cudaGetDeviceProperties(self, device):
        major, minor = self.compute_capability
        return OK, SimpleNamespace(name=b"NVIDIA Fake\0\0\0", major=major, minor=minor)

    def cudaMemGetInfo(self):
        return OK, self.total - self.used(), self.total

    def cudaMalloc(self, size):
        if size > self.total - self.used():
            return cudaError_t.cudaErrorMemoryAllocation, None
        address, self.next_address = self.next_address, self.next_address + -(-(size + 1) // PAGE) * PAGE
        self.device[address] = np.full(size, 0x7F, np.uint8)  # garbage: 3e38 as float32, NaN as float16
        return OK, address

    def cudaFree(self, devPtr):
        del self.device[devPtr]
        return (OK,)

    def cudaMallocHost(self, size):
        array = np.full(size, 0x7F, np.uint8)
        self.pinned[array.ctypes.data] = array
        return OK, array.ctypes.data

    def cudaFreeHost(self, ptr):
        del self.pinned[ptr]
        return (OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        kinds = {1: (True, False), 2: (False, True), 3: (True, True)}
        to_device, from_device = kinds[int(kind)]

        def copy():
            self.view(dst, count, on_device=to_device)[:] = self.view(src, count, on_device=from_device)

        self.view(dst, count, on_device=to_device)
        self.view(src, count, on_device=from_device)
        stream.put(copy)
        return (OK,)

    def cudaMemsetAsync(self, devPtr, value, count, stream):
        target = self.view(devPtr, count)
        stream.put(lambda: target.fill(value))
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = FakeStream(self._handle())
        self.streams[stream.handle] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream):
        stream.drain()
        del self.streams[stream.handle]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        assert stream.captured is None, "a stream that is being captured cannot be waited for"
        stream.drain()
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        stream.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        graph, stream.captured = SimpleNamespace(work=stream.captured), None
        self.graphs[id(graph)] = graph
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        executable = SimpleNamespace(work=list(graph.work))
        self.executables[id(executable)] = executable
        return OK, executable

    def cudaGraphDestroy(self, graph):
        del self.graphs[id(graph)]
        graph.work.clear()
        return (OK,)

    def cudaGraphLaunch(self, graphExec, stream):
        assert id(graphExec) in self.executables
        for work in graphExec.work:
            stream.put(work)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):
        del self.executables[id(graphExec)]
        graphExec.work.clear()
        return (OK,)

    def cudaEventCreateWithFlags(self, flags):
        event = SimpleNamespace(marks=[], stream=None)
        self.events[id(event)] = event
        return OK, event

    def cudaEventRecord(self, event, stream):
        event.stream, event.mark = stream, lambda: None
        stream.put(event.mark)
        return (OK,)

    def cudaEventSynchronize(self, event):
        if event.mark in event.stream.queue:
            event.stream.drain(until=event.mark)
        return (OK,)

    def cudaEventDestroy(self, event):
        del self.events[id(event)]
        return (OK,)

    def cudaGetLastError(self):
        return (OK,)

    def cudaGetErrorName(self, error):
        return OK, error.name.encode()

    def cudaGetErrorString(self, error):
        return OK, TEXTS.get(int(error), b"an error")

    def _handle(self):
        self.next_handle += 1
        return self.next_handle


FUNCTIONS = [
    name for name in vars(FakeCudaRuntime) if name.startswith("cuda") and callable(vars(FakeCudaRuntime)[name])
]
FUNCTIONS = [name for name in FUNCTIONS if not isinstance(vars(FakeCudaRuntime)[name], type)]
# How many values each returns, the status among them; held against the real module where that can be called.
ARITY = dict.fromkeys(FUNCTIONS, 1) | {
    "cudaGetDeviceCount": 2,
    "cudaGetDeviceProperties": 2,
    "cudaMemGetInfo": 3,
    "cudaMalloc": 2,
    "cudaMallocHost": 2,
    "cudaStreamCreateWithFlags": 2,
    "cudaStreamEndCapture": 2,
    "cudaGraphInstantiate": 2,
    "cudaEventCreateWithFlags": 2,
    "cudaGetErrorName": 2,
    "cudaGetErrorString": 2,
}
