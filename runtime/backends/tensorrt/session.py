"""The session over TensorRT or TensorRT-RTX: one graph without caches, one context, and buffers that never move."""

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import BATCH, GraphInterface, TensorSpec
from piston.core.errors import EngineError, MisuseError
from piston.runtime.backends.cuda_driver import Cuda, Stream
from piston.runtime.backends.device_block import Block
from piston.runtime.backends.tensorrt.context import Context
from piston.runtime.backends.tensorrt.interface import TYPES, largest_shape, tensors_of
from piston.runtime.backends.tensorrt.plan import Plan

PROFILE = 0
PURPOSE = "The inputs and outputs of the engine"
NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "bfloat16": np.uint16}
Array = NDArray[Any]


class TensorRTSession:
    """See Session. A run of more rows than `max_batch` is made in pieces.

    Memory on the device is taken once, here; `close` or the process's end frees it. Sizes change from run to run, so
    none is captured into a CUDA graph.

    Args:
        cuda: the device.
        plan: the deserialized engine.
        interface: of its graph, as the manifest states it.
        max_batch: rows of one run, at most as many as the plan was built for.
        max_length: tokens of a row, likewise.

    Raises:
        MisuseError: more rows or tokens than the plan has.
        DeviceMemoryError: they do not fit the device.
        EngineError: the plan is not of this interface, or TensorRT refuses something.
    """

    def __init__(self, cuda: Cuda, plan: Plan, interface: GraphInterface, *, max_batch: int, max_length: int) -> None:
        found = tensors_of(plan.engine)
        self._inputs = tuple(tensor for tensor in interface.inputs if tensor.name in found)  # no layer reads others
        self._outputs = interface.outputs
        self._interface = GraphInterface(inputs=self._inputs, outputs=self._outputs)
        _check_tensors(found, (*self._inputs, *self._outputs), plan.source)
        self._max_batch, self._sizes = _sizes_of(plan.engine, self._inputs, max_batch, max_length)
        with ExitStack() as stack:
            stack.callback(plan.close)
            self._stream = cuda.stream()
            stack.callback(self._stream.close)
            self._open(cuda, plan, stack)
            stack.callback(plan.save_kernels)
            # Wait first: nothing may be freed while work is still running.
            stack.callback(self._stream.synchronize)
            self._release = weakref.finalize(self, _release, stack.pop_all())

    @classmethod
    def open(cls, plan: Plan, interface: GraphInterface, *, cuda: Cuda, max_batch: int, max_length: int) -> Self:
        """Make a session of a plan and take ownership of it, even on failure; raises as the class does."""
        try:
            return cls(cuda, plan, interface, max_batch=max_batch, max_length=max_length)
        except BaseException:
            plan.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See Session. What is returned is the caller's own; bfloat16 is upcast to float32.

        Raises:
            MisuseError: the session is closed, or a size is beyond what it was opened for.
            EngineError: an input has another shape than the interface, or TensorRT refuses the run.
        """
        if not self._release.alive:
            raise MisuseError("The session is closed; load the bundle again.")
        rows = len(feeds[self._inputs[0].name])
        pieces = [self._piece(feeds, start) for start in range(0, rows, self._max_batch)]
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def run_on_device(self, feeds: Mapping[str, Array]) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The address and shape of each output of at most `max_batch` rows, valid until the next run; else as `run`."""
        if not self._release.alive:
            raise MisuseError("The session is closed; load the bundle again.")
        shapes = self._launched(feeds, 0)
        self._stream.synchronize()
        return {name: (self._block.address(name), shape) for name, shape in shapes.items()}

    def close(self) -> None:
        """Free the device memory; the session cannot be used afterwards."""
        self._release()

    def _piece(self, feeds: Mapping[str, Array], start: int) -> dict[str, Array]:
        """The outputs of the rows from `start` on, as many as one run takes."""
        shapes = self._launched(feeds, start)
        for tensor in self._outputs:
            nbytes = math.prod(shapes[tensor.name]) * np.dtype(NUMPY[tensor.dtype]).itemsize
            self._block.download(self._stream, tensor.name, nbytes)
        self._stream.synchronize()
        found = {name: self._block.arrays[name][: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}
        return {tensor.name: _own(found[tensor.name], tensor.dtype) for tensor in self._outputs}

    def _launched(self, feeds: Mapping[str, Array], start: int) -> dict[str, tuple[int, ...]]:
        """Begin a run of these rows; the shapes of its outputs."""
        given = {
            tensor.name: np.ascontiguousarray(feeds[tensor.name][start : start + self._max_batch], NUMPY[tensor.dtype])
            for tensor in self._inputs
        }
        sizes = self._checked_sizes(given)
        for name, array in given.items():
            self._block.arrays[name][: array.size] = array.reshape(-1)
        self._block.upload(self._stream, self._inputs[0].name, self._outputs[0].name)
        self._context.shape({name: array.shape for name, array in given.items()})
        self._context.run()
        return {tensor.name: _resolved(tensor, sizes) for tensor in self._outputs}

    def _checked_sizes(self, given: Mapping[str, Array]) -> dict[str, int]:
        try:
            sizes = self._interface.sizes_of({name: array.shape for name, array in given.items()})
        except ValueError as problem:
            raise EngineError(f"{problem}.") from None
        for name, size in sizes.items():
            if size > self._sizes[name]:
                raise MisuseError(f"{name} is {size:,}, but the session was opened for {self._sizes[name]:,}.")
        return sizes

    def _open(self, cuda: Cuda, plan: Plan, stack: ExitStack) -> None:
        fields = dict(_fields((*self._inputs, *self._outputs), self._sizes))
        self._block = Block(cuda, fields, PURPOSE)
        stack.callback(self._block.close)
        scratch = cuda.allocate(max(plan.scratch_bytes, 1), "The scratch memory of TensorRT")
        stack.callback(scratch.close)
        self._context = _context(plan, self._stream)
        stack.callback(self._context.close)
        self._context.use_memory(scratch.address, scratch.nbytes)
        self._context.bind({name: self._block.address(name) for name in fields})


def _own(array: Array, dtype: str) -> Array:
    """A copy; bfloat16, which numpy does not have, as float32: its bits are the upper ones of that."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array.copy()


def _context(plan: Plan, stream: Stream) -> Context:
    return Context(plan.create_context(is_captured=False), plan.log, PROFILE, stream)


def _fields(tensors: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, Any]]]:
    """The arrays of a block at the largest sizes, inputs before outputs."""
    for tensor in tensors:
        yield tensor.name, (math.prod(_resolved(tensor, sizes)), NUMPY[tensor.dtype])


def _resolved(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)


def _check_tensors(found: Mapping[str, str], wanted: tuple[TensorSpec, ...], source: str) -> None:
    stated = {tensor.name: TYPES.get(tensor.dtype, tensor.dtype) for tensor in wanted}
    if found != stated:
        odd = min(set(found.items()) ^ set(stated.items()))
        raise EngineError(f"{source} is not the engine its manifest states: it differs in {odd}; build it again.")


def _sizes_of(
    engine: Any, inputs: tuple[TensorSpec, ...], max_batch: int, max_length: int
) -> tuple[int, dict[str, int]]:
    """Rows of one run, and the largest size of each symbol; raises MisuseError for more than the plan has."""
    built: dict[str, int] = {}
    for tensor in inputs:
        shape = largest_shape(engine, tensor.name, PROFILE)
        built |= {size: shape[axis] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
    longest = max((size for name, size in built.items() if name != BATCH), default=max_length)
    if max_batch > built[BATCH] or max_length > longest:
        raise MisuseError(
            f"max_batch is {max_batch} and max_length {max_length:,}, but the engine was built for {built[BATCH]} and "
            f"{longest:,}; build it again."
        )
    return max_batch, {name: max_batch if name == BATCH else min(size, max_length) for name, size in built.items()}


def _release(stack: ExitStack) -> None:
    """Free everything and ignore errors: after a fault every call fails, and the fault has been reported."""
    with contextlib.suppress(EngineError):
        stack.close()
