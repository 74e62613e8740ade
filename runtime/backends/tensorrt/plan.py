"""Loads plans. A plan is executable code: its bytes are read once, checked, and exactly these go to TensorRT.

The checks compare the hash with the manifest, then tag, version and GPUs of the header with this machine. Host code in
plans and temporary files stay forbidden.
"""

import hashlib
from pathlib import Path
from typing import Any, Self

from piston.core.bundle.manifest import FileRecord
from piston.core.bundle.plan_header import PlanHeader
from piston.core.errors import BundleCorruptError, EngineError, NoDeviceError
from piston.runtime.backends.cuda_driver import Device
from piston.runtime.backends.tensorrt.kernel_cache import KernelCache
from piston.runtime.backends.tensorrt.log import accepted, log_of, open_module, reported

LEAN = "tensorrt_lean"  # TensorRT's runtime alone, a tenth of its size, without a compiler


class Plan:
    """A deserialized engine, which makes contexts; `close` drops it."""

    def __init__(self, module: Any, data: bytes, source: str, kernels: KernelCache | None) -> None:
        self.module = module
        self.log = log_of(module)
        self.source = source
        self._kernels = kernels
        with reported(self.log, f"loading {source}"):
            self._runtime = module.Runtime(self.log)
            self._runtime.tempfile_control_flags = 0
            self.engine: Any = accepted(self._runtime.deserialize_cuda_engine(data))

    @classmethod
    def load(cls, path: Path, record: FileRecord, device: Device, cache_dir: Path, *, is_lean: bool = False) -> Self:
        """Read, check and deserialize a plan.

        Args:
            path: the file.
            record: its record in the manifest.
            device: the GPU it is to run on.
            cache_dir: where kernels that TensorRT-RTX compiles are kept if not next to the plan.
            is_lean: use TensorRT's lean runtime, which loads version-compatible plans.

        Raises:
            BundleCorruptError: its bytes are not the recorded ones, or not those of a plan.
            NoDeviceError: it was built for other GPUs.
            MissingExtraError: the module it needs is not installed.
            EngineError: the installed version is not the one that built it, or refuses it.
        """
        data = read_recorded(path, record)
        header = PlanHeader.parse(data[:64], str(path))
        if header.size is not None and header.size != len(data):
            raise BundleCorruptError(
                f"{path} states a size of {header.size} bytes, but has {len(data)}; build it again."
            )
        check_gpu(header.compute_capabilities, device, str(path))
        module = open_module(LEAN if is_lean else header.compiler)
        check_version(header, str(module.__version__), str(path), is_lean=is_lean)
        kernels = None
        if header.compiler == "tensorrt_rtx":
            kernels = KernelCache.beside(path, record.sha256, cache_dir)
        return cls(module, data, str(path), kernels)

    @property
    def scratch_bytes(self) -> int:
        """Device memory in bytes that a context needs while it runs, for any profile."""
        return int(self.engine.device_memory_size_v2)

    def create_context(self, *, is_captured: bool) -> Any:
        """A new IExecutionContext without its own memory; `is_captured` says that its steps become CUDA graphs."""
        module = self.module
        with reported(self.log, f"creating a context of {self.source}"):
            config = accepted(self.engine.create_runtime_config())
            strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
            config.set_execution_context_allocation_strategy(strategy)
            if self._kernels is not None:
                # We capture steps ourselves, which needs their kernels in final form before. A prefill has another
                # shape each time and must not wait for kernels of that shape.
                kinds = module.DynamicShapesKernelSpecializationStrategy
                config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
                config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if is_captured else kinds.LAZY
                self._kernels.attach(config)
            return accepted(self.engine.create_execution_context(config))

    def save_kernels(self) -> None:
        """Save kernels that were compiled on this machine for the next load."""
        if self._kernels is not None:
            self._kernels.save()

    def close(self) -> None:
        """Drop everything of TensorRT's, the engine before the runtime that made it."""
        self._kernels = self.engine = None
        self._runtime = None


def read_recorded(path: Path, record: FileRecord) -> bytes:
    """Read a file once; raises BundleCorruptError unless these bytes have the recorded hash."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise BundleCorruptError(f"{path} cannot be read ({problem}); copy the bundle whole.") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise BundleCorruptError(f"{path} is not the plan that was recorded (SHA-256 differs); build it again.")
    return data


def check_version(header: PlanHeader, installed: str, source: str, *, is_lean: bool = False) -> None:
    """Raise EngineError unless the plan was built by exactly the installed version: TensorRT loads no other.

    The lean runtime takes version-compatible plans of its own major version, from the oldest up to its own.
    """
    if is_lean:
        numbers = tuple(int(part) for part in installed.split("."))
        if numbers[0] != header.version[0] or numbers < header.version:
            raise EngineError(
                f"{source} was built by tensorrt {header.version_text}; {LEAN} {installed} loads plans of tensorrt "
                f"{numbers[0]} up to its own version. Install a {LEAN} that is not older, or build it again."
            )
        return
    if installed != header.version_text:
        raise EngineError(
            f"{source} was built by {header.compiler} {header.version_text}, but {installed} is installed; "
            "install that version or build it again."
        )


def check_gpu(compute_capabilities: tuple[str, ...], device: Device, source: str) -> None:
    """Raise NoDeviceError unless a plan for these GPUs runs on the device."""
    if runs_on(compute_capabilities, device.sm):
        return
    raise NoDeviceError(
        f"{source} was built for {', '.join(compute_capabilities)}; this GPU is {device.sm} ({device.name}). "
        "Build it for that."
    )


def runs_on(compute_capabilities: tuple[str, ...], sm: str) -> bool:
    """Whether a plan for these GPUs runs on `sm`; `later` admits every GPU after the last, an empty list every GPU."""
    if not compute_capabilities or sm in compute_capabilities:
        return True
    known = [int(name.removeprefix("sm")) for name in compute_capabilities if name.startswith("sm")]
    return "later" in compute_capabilities and int(sm.removeprefix("sm")) > max(known, default=0)
