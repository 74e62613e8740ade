"""A session: one graph loaded on one backend. Feeds in, outputs out; no slots, no text.

ONNX Runtime's exceptions become EngineError here and nowhere else.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import GraphInterface, TensorSpec
from piston.core.errors import EngineError, MissingExtraError, MisuseError
from piston.core.machine import num_cores
from piston.runtime import kernels

Array = NDArray[Any]
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of outputs that go where they are wanted
ONNX_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}  # others are named alike
# ONNX Runtime's basic optimizations but ConstantFolding (version 1.32): with `fold`, all other nodes run as written.
NOT_FOLDING = [
    "Level1_RuleBasedTransformer", "CommonSubexpressionElimination", "ConstantSharing", "DoubleQDQPairsRemover",
    "EnsureUniqueDQForNodeUnit", "FreeDimensionOverrideTransformer", "GeluFusionL1", "LayerNormFusionL1",
    "MatMulAddFusion", "PropagateCastOps", "QDQPropagationTransformer", "ReshapeFusion", "TransposeOptimizer",
]  # fmt: skip


class Session(Protocol):
    """One graph, loaded."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from the inputs by name; raises EngineError."""

    def close(self) -> None:
        """Free what the backend holds; the session is of no use afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """Options of an ONNX Runtime session. `optimize` is for graphs that were not saved optimized."""

    threads: int = 0  # 0: one for each physical core that this process may use
    optimize: bool = False
    prepack: bool = True  # False halves the memory of a session that is used once
    fold: bool = False  # constant folding alone: weights are dequantized once, at load, and stay in memory
    profile: str | None = None  # where ONNX Runtime's profile goes, written when the session is freed
    kernels: bool = False  # the graph has operators of piston.runtime.kernels
    provider: str = "CPUExecutionProvider"
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise MisuseError for more threads than this machine can use."""
        check_threads(self.threads)


class OrtSession:
    """A graph without states, on ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = {item.name for item in session.get_inputs()}
        self._outputs = [item.name for item in session.get_outputs()]
        self._types = {item.name: NUMPY_TYPES.get(item.type) for item in session.get_outputs()}
        self.fixed: dict[str, Array] = {}  # inputs that every run is given besides its feeds

    @classmethod
    def open(cls, path: Path, interface: GraphInterface, options: OrtOptions | None = None) -> Self:
        """Load an ONNX file.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: it refuses the file, or the graph is not of this interface.
        """
        session = open_session(path, options or OrtOptions())
        check_tensors(session, interface, path)
        return cls(session)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See Session. Inputs that a lowering removed are left out."""
        given = self._given(feeds)
        with translated("running a graph"):
            return dict(zip(self._outputs, self._session.run(None, given), strict=True))

    def run_into(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Compute outputs into these arrays, of their shapes; raises as `run` does.

        What is contiguous is written by the graph itself, without a copy.
        """
        given = {name: np.ascontiguousarray(array) for name, array in self._given(feeds).items()}
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            if array.flags.c_contiguous and self._types[name] == array.dtype:
                binding.bind_output(name, "cpu", 0, array.dtype, list(array.shape), array.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        with translated("running a graph"):
            self._session.run_with_iobinding(binding)
        for array, value in zip(outputs.values(), binding.get_outputs(), strict=True):
            if value.data_ptr() != array.ctypes.data:
                array[:] = value.numpy()

    def close(self) -> None:
        """Drop ONNX Runtime's session."""
        self._session = None

    def _given(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise MisuseError("The session is closed; load the bundle again.")
        return {name: array for name, array in feeds.items() if name in self._inputs} | self.fixed


def check_tensors(session: Any, interface: GraphInterface, path: Path) -> None:
    """Refuse a graph that reads what the interface does not have, or does not give what it has."""
    wanted: dict[str, TensorSpec] = {tensor.name: tensor for tensor in (*interface.inputs, *interface.outputs)}
    found = {item.name: item for item in (*session.get_inputs(), *session.get_outputs())}
    missing = [tensor.name for tensor in interface.outputs if tensor.name not in found]
    if unknown := [*(name for name in found if name not in wanted), *missing]:
        raise EngineError(f"{path} and its manifest differ in {unknown[0]!r}; build it again.")
    for name, item in found.items():
        spec = wanted[name]
        kind = f"tensor({ONNX_TYPES.get(spec.dtype, spec.dtype)})"
        if item.type != kind or not agree(list(item.shape), list(spec.shape)):
            raise EngineError(
                f"{name} of {path} is {item.type} {item.shape}, not {kind} {list(spec.shape)} as its manifest states; "
                "build it again."
            )


def agree(shape: list[Any], wanted: list[int | str]) -> bool:
    """Whether a graph's shape may be the one that a manifest states; symbolic sizes are names."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(isinstance(w, str) or not isinstance(s, int) or s == w for s, w in pairs)


def check_threads(threads: int) -> None:
    """Raise MisuseError unless it is 0 or a number of threads that this machine can use."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= threads <= most:
        raise MisuseError(f"threads is {threads}; it must be from 0, where the backend chooses, to {most}.")


def open_session(path: Path, options: OrtOptions, graph: bytes | None = None) -> Any:
    """Make an onnxruntime.InferenceSession; raises as OrtSession.open does, and as kernels.require does.

    `graph` is the serialized model in place of the file's, whose weights it reads.

    Raises:
        MisuseError: the directory's name is not UTF-8.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("ONNX Runtime is not installed; pip install 'piston[ort]'.") from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads = options.threads or num_cores()
    settings.log_severity_level = 3
    folder = str(path.parent if graph is None else path.parent.resolve())
    if not _is_utf8(folder):
        raise MisuseError(f"The name of {folder!a} is not UTF-8, and ONNX Runtime takes no other; move the bundle.")
    levels = onnxruntime.GraphOptimizationLevel
    folds_only = options.fold and not options.optimize
    plain = levels.ORT_ENABLE_BASIC if folds_only else levels.ORT_DISABLE_ALL
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if options.optimize else plain
    if options.profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, options.profile
    if folds_only:  # else DequantizeLinear is kept for integer products
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    with translated(f"loading {path}"):
        if options.kernels:
            settings.register_custom_ops_library(str(kernels.require()))
            kernels.set_threads(threads)
            # The kernels have their own threads; ONNX Runtime's would spin and take the cores from them.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [(options.provider, dict(options.provider_options))]
        if graph is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        skipped = NOT_FOLDING if folds_only else []
        source = str(path) if graph is None else graph
        return onnxruntime.InferenceSession(source, settings, providers=providers, disabled_optimizers=skipped)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions, which have many names, into EngineError."""
    try:
        yield
    except Exception as problem:
        if type(problem).__module__.startswith("onnxruntime"):
            reason = str(problem).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime failed while {doing}: {reason}") from problem
        raise
