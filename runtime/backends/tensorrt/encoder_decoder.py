"""The engine of an encoder-decoder over TensorRT: a session for the encoder's plan, a TensorRTEngine for the decoder's.

What the encoder writes does not leave the device: it is copied into the row of its slot, where a source of fewer
positions than a row has leaves room behind it in every head.
"""

import math
from typing import Any

from piston.core.bundle.interface import ITEM_SIZES, CacheSpec, GraphInterface
from piston.runtime.backends.cross_states import Sources
from piston.runtime.backends.engine import Source, needs_encoding
from piston.runtime.backends.tensorrt.engine import TensorRTEngine
from piston.runtime.backends.tensorrt.plan import Plan
from piston.runtime.backends.tensorrt.session import TensorRTSession


class TensorRTEncoderDecoder(TensorRTEngine):
    """See EncoderDecoderEngine. Rows are decoded as a TensorRTEngine does."""

    encoder: TensorRTSession
    max_source: int

    @classmethod
    def open_both(
        cls, encoder: tuple[Plan, GraphInterface], decoder: tuple[Plan, CacheSpec, CacheSpec], **options: Any
    ) -> "TensorRTEncoderDecoder":
        """Make an engine of both plans and take ownership of them, even on failure; raises as both classes do.

        Args:
            encoder: its plan and interface.
            decoder: its plan, cache and cross states.
            options: those of `TensorRTEngine`.
        """
        (plan, interface), (other, spec, cross) = encoder, decoder
        try:
            session = TensorRTSession.open(
                plan, interface, cuda=options["cuda"], max_batch=1, max_length=options["capacity"]
            )
        except BaseException:
            other.close()
            raise
        try:
            made = cls(plan=other, spec=spec, cross=cross, **options)
        except BaseException:
            other.close()
            session.close()
            raise
        made.encoder, made.max_source = session, cross.num_positions or options["capacity"]
        made.cache.cross = Sources(made.cache.num_slots, made.max_source)
        return made

    def encode(self, slot: int, source: Source) -> None:
        """See EncoderDecoderEngine."""
        if not needs_encoding(self.cache, slot, source):
            return
        assert self.cache.cross is not None
        assert self._cross is not None
        found = self.encoder.run_on_device(source.feeds)
        self._settle()
        goals = self._memory.addresses(self.cache.row(slot))
        for state in self._cross.states:
            address, (_, heads, positions, width) = found[state.output]
            goal, item = goals[state.input], ITEM_SIZES[state.dtype]
            if positions == self._interface.max_source:
                self._stream.copy(goal, address, math.prod((heads, positions, width)) * item)
                continue
            for head in range(heads):
                place = goal + head * self._interface.max_source * width * item
                self._stream.copy(place, address + head * positions * width * item, positions * width * item)
        self._stream.synchronize()  # before the encoder writes there again
        self.cache.cross.hold(slot, source.length, source.key)

    def close(self) -> None:
        """Free both."""
        super().close()
        self.encoder.close()
