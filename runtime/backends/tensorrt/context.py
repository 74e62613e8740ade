"""One execution context of one profile: its addresses, its shapes, its run."""

from typing import Any

from piston.core.errors import EngineError
from piston.runtime.backends.cuda_driver import Stream
from piston.runtime.backends.tensorrt.log import accepted, reported


class Context:
    """Sets only what changed since the last step, so that a captured step stays valid as long as nothing does."""

    def __init__(self, context: Any, log: Any, profile: int, stream: Stream) -> None:
        self._context = context
        self._log = log
        self._stream = stream
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        with reported(log, f"selecting profile {profile}"):
            accepted(context.set_optimization_profile_async(profile, int(stream)))

    def use_memory(self, address: int, nbytes: int) -> None:
        """Set the context's scratch memory; contexts that never run at the same time may share it."""
        self._context.set_device_memory(address, nbytes)

    def bind(self, addresses: dict[str, int]) -> None:
        """Set the addresses of tensors."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                with reported(self._log, f"binding {name}"):
                    accepted(self._context.set_tensor_address(name, address))
                self._addresses[name] = address

    def shape(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Set the input shapes of the next run."""
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                with reported(self._log, f"giving {name} the shape {list(shape)}"):
                    accepted(self._context.set_input_shape(name, shape))
                self._shapes[name] = shape

    def run(self) -> None:
        """Enqueue one step on the stream."""
        with reported(self._log, "running a step"):
            accepted(self._context.execute_async_v3(int(self._stream)))

    def check_capturable(self) -> None:
        """Raise EngineError if a run cannot be captured now; only TensorRT-RTX reports this."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is not None and not ask(int(self._stream)):
            raise EngineError("TensorRT-RTX reports that this step cannot be captured.")

    def close(self) -> None:
        """Drop TensorRT's context; none of its work may be under way."""
        self._context = None
