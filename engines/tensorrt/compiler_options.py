"""What may be asked of the compilers beyond sizes and types, and which of the two has it.

TensorRT-RTX 1.7.1 without a GPU: what it ignores is refused rather than ignored, and what needs a GPU is refused before
the build rather than after it.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from piston.core.errors import MisuseError
from piston.engines.tensorrt.target import Target

HardwareCompatible = Literal["ampere+", "same"]
HARDWARE_COMPATIBLE: tuple[HardwareCompatible, ...] = get_args(HardwareCompatible)
HIGHEST_LEVEL = 5

# Option -> why TensorRT-RTX does not have it.
_RTX_LACKS = {
    "timing_cache": "it times no kernels: they are compiled on the GPU that runs them",
    "refit": "its compiler needs a GPU for plans that can be refitted",
    "weight_streaming": "its compiler ignores it",
    "version_compatible": "a plan is read by the version that wrote it; install that one",
    "hardware_compatible": "name the GPUs in the target instead, such as tensorrt-rtx:sm86,sm89",
    "optimization_level": "its compiler ignores it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerOptions:
    """Options of the TensorRT targets; None and False leave the compiler's own default."""

    timing_cache: Path | None = None  # read if it is there, and written after the build
    refit: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False  # without the lean runtime: host code in plans is never loaded
    hardware_compatible: HardwareCompatible | None = None
    optimization_level: int | None = None
    workspace: int | None = None  # bytes
    sparse_weights: bool = False  # set by the build where weights are 2:4 sparse; the compiler looks at each of them

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= HIGHEST_LEVEL:
            raise MisuseError(f"--optimization-level {self.optimization_level} must be from 0 to {HIGHEST_LEVEL}.")

    @property
    def given(self) -> list[str]:
        """The options that were asked for."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return [name for name, value in values.items() if value is not None and value is not False]  # 0 is a value

    def check(self, target: Target) -> None:
        """Raise MisuseError for an option that the target does not have, with the reason."""
        if target.module != "tensorrt_rtx":
            return
        for name in self.given:
            if name in _RTX_LACKS:
                option = name.replace("_", "-")
                raise MisuseError(f"--{option} is not for {target.text}: {_RTX_LACKS[name]}.")

    def to_json(self) -> dict[str, Any]:
        """What the manifest records: no path, which is no property of the engine."""
        return {name: value for name, value in asdict(self).items() if name in self.given and name != "timing_cache"}
