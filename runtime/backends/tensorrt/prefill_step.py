"""A prefill chunk: one row of the cache, by address; any number of tokens up to the chunk."""

from contextlib import ExitStack

import numpy as np

from piston.core.bundle.interface import ALIGNMENT, SOURCE_LENGTHS
from piston.runtime.backends.cuda_driver import Cuda, DeviceBuffer, PinnedArray, Stream
from piston.runtime.backends.device_block import MOVING, Block
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.tensorrt.context import Context
from piston.runtime.backends.tensorrt.device_cache import DeviceCache
from piston.runtime.backends.tensorrt.fields import input_fields, output_fields
from piston.runtime.backends.tensorrt.interface import Interface

PURPOSE = "The prefill step"


class PrefillStep:
    """The context of the prefill profile and its buffers. The buffer for logits grows when more are requested."""

    def __init__(self, cuda: Cuda, stream: Stream, context: Context, cache: DeviceCache, interface: Interface) -> None:
        self._cuda, self._stream, self._context, self._cache = cuda, stream, context, cache
        self._vocab_size = interface.vocab_size
        self._room = 0
        self._stack = ExitStack()
        self._logits = ExitStack()
        with self._stack:
            self._stack.callback(self._logits.close)
            sizes = (interface.chunk, interface.max_logits, interface.capacity)
            fields = input_fields(1, *sizes, has_lengths=interface.has_lengths)
            self._inputs = Block(cuda, fields, PURPOSE)
            self._stack.callback(self._inputs.close)
            outputs = Block(cuda, output_fields(1, interface.max_logits), PURPOSE, on_host=False)
            self._stack.callback(outputs.close)
            self._stack.callback(context.close)
            context.bind({name: self._inputs.address(name) for name in fields})
            if interface.alignment:
                unread = cuda.allocate(interface.alignment * interface.chunk, PURPOSE)
                self._stack.callback(unread.close)
                context.bind({ALIGNMENT: unread.address})
            if interface.has_lengths:
                context.shape({SOURCE_LENGTHS.name: (1,)})
            context.bind({f"next.{name}": outputs.address(f"next.{name}") for name in MOVING})
            context.shape(dict.fromkeys(("write_indices", "kv_lengths", "temperature", "top_k", "top_p"), (1,)))
            context.shape({"uniforms": (1, interface.capacity), **cache.shapes(1)})
            self._inputs.arrays["top_k"][:] = 1
            self._inputs.arrays["top_p"][:] = 1
            self._reserve(1)
            self._inputs.upload(stream, "input_ids")
            stream.synchronize()
            self._stack = self._stack.pop_all()

    def run(self, slot: int, ids: np.ndarray, length: int, kept: range, source: int = 0) -> Logits:
        """Append `ids` to a slot that holds `length` positions; logits of the ids in `kept`, valid until the next run.

        Args:
            slot: the row of the cache.
            ids: int64 [n], n from 1 to the chunk.
            length: positions before them.
            kept: which of them get logits; at most max_logits.
            source: positions of the row's source, where the graph reads them.
        """
        count, num_kept = len(ids), max(len(kept), 1)  # the graph gives one at least
        self._reserve(num_kept)
        arrays = self._inputs.arrays
        arrays["input_ids"][:count] = ids
        arrays["position_ids"][:count] = np.arange(length, length + count)
        arrays["write_indices"][0] = length
        arrays["kv_lengths"][0] = length + count
        arrays["logits_positions"][:num_kept] = kept or [count - 1]
        if SOURCE_LENGTHS.name in arrays:
            arrays[SOURCE_LENGTHS.name][0] = source
        self._inputs.upload(self._stream, "input_ids", "temperature")
        self._context.bind(self._cache.addresses(slot))
        self._context.shape({"input_ids": (1, count), "position_ids": (1, count), "logits_positions": (1, num_kept)})
        self._context.run()
        if kept:
            nbytes = num_kept * self._vocab_size * 4
            self._stream.download(self._host_logits.address, self._device_logits.address, nbytes)
        self._stream.synchronize()  # before the host buffer of the inputs is filled again
        return self._host_logits.array[: len(kept)]

    def close(self) -> None:
        """Drop the context, then free the buffers."""
        self._stack.close()

    def _reserve(self, num_kept: int) -> None:
        """Grow the buffer to the logits of `num_kept` positions: most callers need one, and a vocabulary is large."""
        if num_kept <= self._room:
            return
        self._logits.close()
        self._room = 0
        self._device_logits: DeviceBuffer = self._cuda.allocate(num_kept * self._vocab_size * 4, PURPOSE)
        self._logits.callback(self._device_logits.close)
        self._host_logits: PinnedArray = self._cuda.pinned((num_kept, self._vocab_size), np.float32, PURPOSE)
        self._logits.callback(self._host_logits.close)
        self._context.bind({"logits": self._device_logits.address})
        self._room = num_kept
