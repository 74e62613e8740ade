"""The engine over ONNX Runtime's CUDA provider: prefill as OrtEngine does it, decode steps as CUDA graphs.

The cache is bound by device address, as on the CPU by host address. In a prefill ONNX Runtime copies the small inputs
and the logits itself. A decode step has its own buffers on the device, see DeviceStep.
"""

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import FunctionType
from typing import Any, Self

from piston.core.bundle.interface import CacheSpec, GraphInterface
from piston.core.errors import EngineError
from piston.runtime.backends.cuda_driver import Cuda, Stream, warn_not_captured
from piston.runtime.backends.device_rows import DeviceRows
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine, check_interface
from piston.runtime.backends.ort_cuda_step import NO_GRAPH, DeviceStep, run_options
from piston.runtime.backends.session import OrtOptions, OrtSession, check_tensors, open_session

PROVIDER = "CUDAExecutionProvider"
PREFILL_CHUNK = 512  # tokens of one prefill step: with fewer the device is partly idle


class OrtCudaEngine:
    """See Engine: an OrtEngine over zeroed device memory, which `close` or the end of the process frees.

    Args:
        session: on the device, with `stream` as its own.
        spec: the cache's layout and type.
        cuda: the device.
        stream: owned by the engine from here on.
        num_slots: rows decoded together.
        capacity: positions of each.
        capture_problem: why steps cannot be captured, if that is known already.

    Raises:
        DeviceMemoryError: cache and buffers do not fit the device.
    """

    def __init__(  # noqa: PLR0913
        self,
        session: Any,
        spec: CacheSpec,
        *,
        cuda: Cuda,
        stream: Stream,
        num_slots: int,
        capacity: int,
        capture_problem: str | None = None,
    ) -> None:
        with ExitStack() as stack:
            stack.callback(stream.close)
            array_bytes = spec.array_bytes(num_slots, capacity)
            buffer = cuda.allocate(
                sum(array_bytes), f"The {spec.dtype} cache of {num_slots} rows of {capacity:,} positions"
            )
            stack.callback(buffer.close)
            # NaN after a row's last position would survive multiplication by zero.
            stream.zero(buffer.address, buffer.nbytes)
            stream.synchronize()
            bases = [buffer.address + begin for begin in accumulate([0, *array_bytes[:-1]])]
            self.cache = KVCache(spec, num_slots, capacity, device="cuda", bases=bases)
            self._rows = DeviceRows(cuda, stream, bases, self.cache.row_bytes)
            stack.callback(self._rows.close)
            self._engine = OrtEngine(session, self.cache, PREFILL_CHUNK, run_options(NO_GRAPH))
            self.vocab_size = self._engine.vocab_size
            self._step = DeviceStep(session, cuda, stream, self.cache, self.vocab_size, capture_problem)
            stack.callback(self._step.close)
            stack.callback(self._engine.close)
            # Wait first: nothing may be freed while work is still running.
            stack.callback(stream.synchronize)
            self._release = weakref.finalize(self, _release, stack.pop_all())

    @classmethod
    def open(cls, path: Path, spec: CacheSpec, *, cuda: Cuda, num_slots: int, capacity: int) -> Self:
        """Load an ONNX file, with decode steps as CUDA graphs where ONNX Runtime can capture them.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: it refuses the file or cannot use the device, or the file is not a decoder with this cache.
            DeviceMemoryError: see the class.
        """
        stream, problem = cuda.stream(), None
        options = {"user_compute_stream": str(int(stream))}
        try:
            try:
                session = _session(path, spec, options | {"enable_cuda_graph": "1"})
            except EngineError as failure:
                session = _session(path, spec, options)
                problem = str(failure)
                warn_not_captured(problem)
        except BaseException:
            stream.close()
            raise
        return cls(
            session,
            spec,
            cuda=cuda,
            stream=stream,
            num_slots=num_slots,
            capacity=capacity,
            capture_problem=problem,
        )

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine."""
        return self._engine.prefill(slot, token_ids, num_logits)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """See Engine."""
        self._engine.check_step(tokens)
        if not tokens:
            return {}
        placed = self._rows.gather(self.cache, tokens)
        logits = self._step.run([tokens.get(slot, 0) for slot in placed], self.cache.lengths[placed])
        for slot in tokens:
            self.cache.advance(slot, 1)
        return {slot: logits[row] for row, slot in enumerate(placed) if slot in tokens}

    @property
    def capture_problem(self) -> str | None:
        """Why decode steps are not captured into a CUDA graph; None if they are, or have not run yet."""
        return self._step.capture_problem

    def close(self) -> None:
        """Drop the session, then free the device's memory."""
        self._engine.close()
        self._release()


def open_cuda_session(path: Path, interface: GraphInterface) -> OrtSession:
    """Load a graph without states; ONNX Runtime copies inputs and outputs itself. Raises as OrtCudaEngine.open does."""
    missing = _load_libraries()
    session = open_session(path, OrtOptions(optimize=True, provider=PROVIDER))
    check_provider(session, missing)
    check_tensors(session, interface, path)
    return OrtSession(session)


def _session(path: Path, spec: CacheSpec, provider_options: Mapping[str, str]) -> Any:
    missing = _load_libraries()
    session = open_session(path, OrtOptions(optimize=True, provider=PROVIDER, provider_options=provider_options))
    check_provider(session, missing)
    check_interface(session, spec, path)
    return session


def _load_libraries() -> str:
    """Load CUDA's libraries from their wheels, where they are installed; return what could not be loaded.

    cuDNN is left out: these graphs have no convolution, and the provider is not linked to it.
    """
    said: list[str] = []
    with contextlib.suppress(ImportError):
        import onnxruntime

        # It prints what it cannot load; a copy of the function with another `print` keeps that off stdout.
        load = onnxruntime.preload_dlls
        names = {**load.__globals__, "print": lambda *words, **_: said.append(" ".join(map(str, words)))}
        FunctionType(load.__code__, names, load.__name__, load.__defaults__, load.__closure__)(cudnn=False)
    return said[0].partition("\n")[0] if said else ""


def _release(stack: ExitStack) -> None:
    """Free everything and ignore errors: after a fault every call fails, and the fault has been reported."""
    with contextlib.suppress(EngineError):
        stack.close()


def check_provider(session: Any, missing: str = "") -> None:
    """Raise EngineError if ONNX Runtime fell back to the CPU, which it does without an error."""
    if PROVIDER not in (found := session.get_providers()):
        raise EngineError(
            f"ONNX Runtime runs this on {', '.join(found)}: its CUDA libraries cannot be loaded"
            f"{f' ({missing})' if missing else ''}. Install CUDA in the version of onnxruntime-gpu, or pip install "
            "'piston[cuda-libs]'; or choose an engine for ort-cpu."
        )
