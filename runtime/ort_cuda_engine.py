"""The engine over ONNX Runtime's CUDA provider: OrtEngine with its cache on the device.

The cache is bound by device address, as on the CPU by host address; ONNX Runtime copies the small inputs and the logits
itself. No step is captured into a CUDA graph: lengths pass through the host.
"""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from piston.runtime.cuda import Cuda, DeviceBuffer
from piston.runtime.engine import Logits
from piston.runtime.errors import EngineError
from piston.runtime.kv_cache import KVCache
from piston.runtime.manifest import CacheSpec
from piston.runtime.ort_engine import OrtEngine, OrtOptions, check_interface, open_session

PROVIDER = "CUDAExecutionProvider"
PREFILL_CHUNK = 512  # tokens of one prefill step: a device is idle with fewer


class OrtCudaEngine:
    """See Engine: an OrtEngine over zeroed device memory, which `close` or the end of the process frees.

    Raises:
        DeviceMemoryError: the cache does not fit the device.
    """

    def __init__(self, session: Any, spec: CacheSpec, *, cuda: Cuda, num_slots: int, capacity: int) -> None:
        array_bytes = num_slots * capacity * spec.bytes_per_token // (2 * spec.num_layers)
        nbytes = 2 * spec.num_layers * array_bytes
        buffer = cuda.allocate(nbytes, f"The {spec.dtype} cache of {num_slots} rows of {capacity:,} positions")
        self._release = weakref.finalize(self, buffer.close)
        _zero(cuda, buffer)
        bases = [buffer.address + index * array_bytes for index in range(2 * spec.num_layers)]
        self.cache = KVCache(spec, num_slots, capacity, device="cuda", bases=bases)
        self._engine = OrtEngine(session, spec, num_slots, capacity, PREFILL_CHUNK, self.cache)
        self.vocab_size = self._engine.vocab_size

    @classmethod
    def open(cls, path: Path, spec: CacheSpec, *, cuda: Cuda, num_slots: int, capacity: int) -> Self:
        """Load an ONNX file.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: it refuses the file or cannot use the device, or the file is no decoder with such a cache.
            DeviceMemoryError: see the class.
        """
        session = open_session(path, OrtOptions(optimize=True, provider=PROVIDER))
        check_provider(session)
        check_interface(session, spec, path)
        return cls(session, spec, cuda=cuda, num_slots=num_slots, capacity=capacity)

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine."""
        return self._engine.prefill(slot, token_ids, num_logits)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """See Engine."""
        return self._engine.step(tokens)

    def close(self) -> None:
        """Drop the session, then free the cache."""
        self._engine.close()
        self._release()


def _zero(cuda: Cuda, buffer: DeviceBuffer) -> None:
    """Clear memory: NaN behind a row's last position would survive being weighted by zero."""
    stream = cuda.stream()
    try:
        stream.zero(buffer.address, buffer.nbytes)
        stream.synchronize()
    finally:
        stream.close()


def check_provider(session: Any) -> None:
    """Raise EngineError where ONNX Runtime put the CPU in place of the device, which it does without an error."""
    if PROVIDER not in (found := session.get_providers()):
        raise EngineError(
            f"ONNX Runtime runs this on {', '.join(found)}: its CUDA libraries cannot be loaded. Install CUDA and "
            "cuDNN in the versions of onnxruntime-gpu, or choose an engine for ort-cpu."
        )
