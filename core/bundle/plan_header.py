"""The first bytes of a plan: which compiler made it, in which version, and for which GPUs. Read without TensorRT.

TensorRT documents tag and version (`ftrt`, bytes 24 to 27). The header of TensorRT-RTX (`vtrt`) was read off 1.7.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from piston.core.errors import BundleCorruptError

Compiler = Literal["tensorrt", "tensorrt_rtx"]
HEADER_SIZE = 64
_TAGS: dict[bytes, Compiler] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION, _MASK = slice(24, 28), slice(32, 40)
_GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "later")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """The header of a plan; `compute_capabilities` is empty except for TensorRT-RTX."""

    compiler: Compiler
    version: tuple[int, int, int, int]
    compute_capabilities: tuple[str, ...]
    size: int | None = None  # bytes of the whole plan, where the header states it

    @classmethod
    def parse(cls, data: bytes, source: str = "the plan") -> Self:
        """Read a header from the first bytes of a plan, at least HEADER_SIZE of them.

        Raises:
            BundleCorruptError: the bytes are not those of a plan.
        """
        compiler = _TAGS.get(bytes(data[:4]))
        if compiler is None or len(data) < HEADER_SIZE:
            raise BundleCorruptError(
                f"{source} is not a TensorRT or TensorRT-RTX plan: it begins with {bytes(data[:4])!r}; build it again."
            )
        major, minor, patch, build = data[_VERSION]
        if compiler == "tensorrt":
            return cls(compiler=compiler, version=(major, minor, patch, build), compute_capabilities=())
        mask = int.from_bytes(data[_MASK], "little")
        return cls(
            compiler=compiler,
            version=(major, minor, patch, build),
            compute_capabilities=tuple(gpu for bit, gpu in enumerate(_GPUS) if mask >> bit & 1),
            size=int.from_bytes(data[16:24], "little"),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header of a file; raises BundleCorruptError."""
        try:
            with path.open("rb") as file:
                data = file.read(HEADER_SIZE)
        except OSError as problem:
            raise BundleCorruptError(f"{path} cannot be read ({problem}); build it again.") from None
        return cls.parse(data, str(path))

    @property
    def version_text(self) -> str:
        """Such as 1.7.1.116."""
        return ".".join(map(str, self.version))
