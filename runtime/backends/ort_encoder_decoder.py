"""The engine of an encoder-decoder over ONNX Runtime: a session for the encoder, an OrtEngine for the decoder."""

from pathlib import Path

from piston.core.bundle.interface import CacheSpec, GraphInterface
from piston.runtime.backends.cross_states import CrossStates
from piston.runtime.backends.engine import Source, needs_encoding
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions, OrtSession


class OrtEncoderDecoder(OrtEngine):
    """See EncoderDecoderEngine. Rows are decoded as an OrtEngine does."""

    encoder: OrtSession
    max_source: int

    @classmethod
    def open_both(
        cls,
        encoder: tuple[Path, GraphInterface],
        decoder: tuple[Path, CacheSpec, CacheSpec],
        *,
        num_slots: int,
        capacity: int,
        max_source: int,
        options: OrtOptions | None = None,
    ) -> "OrtEncoderDecoder":
        """Load the graph and interface of the encoder, and the graph, cache and cross states of the decoder.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: it refuses a file, or the files are not of these interfaces.
        """
        path, own, cross = decoder
        states = CrossStates(cross, num_slots, max_source)
        engine = cls.open(path, own, num_slots=num_slots, capacity=capacity, options=options, cross=states)
        engine.encoder = OrtSession.open(*encoder, options)
        engine.max_source = max_source
        return engine

    def encode(self, slot: int, source: Source) -> None:
        """See EncoderDecoderEngine."""
        cross, cache = self._cross, self.cache
        assert cross is not None
        if not needs_encoding(cache, slot, source):
            return
        places = cross.places(slot, source.length, cache.used)
        names = [state.output for state in cross.spec.states]
        self.encoder.run_into(source.feeds, dict(zip(names, places, strict=True)))
        cross.hold(slot, source.length, source.key)

    def close(self) -> None:
        """Drop both sessions."""
        super().close()
        self.encoder.close()
