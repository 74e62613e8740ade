"""Targets of the two compilers: `tensorrt-rtx[:sm89,sm120]` and `tensorrt[:sm90]`, read and checked."""

import re
from dataclasses import dataclass
from typing import Literal, Self

from piston.core.errors import MisuseError

Module = Literal["tensorrt", "tensorrt_rtx"]
FAMILIES: dict[str, Module] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
RTX_GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")  # ComputeCapability of 1.7.1
AUTO = "auto"  # the type of an engine: float16, or bfloat16 where the model goes beyond float16
_GPU = re.compile(r"sm\d{2,3}")


@dataclass(frozen=True, slots=True)
class Target:
    """One compiler and the GPUs it is to build for; none named leaves that to the compiler."""

    text: str
    module: Module
    gpus: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a target.

        Raises:
            MisuseError: a GPU is misspelt, named twice, or not one that the compiler builds for.
        """
        family, colon, rest = text.partition(":")
        gpus = tuple(rest.split(",")) if colon else ()
        for gpu in gpus:
            if not _GPU.fullmatch(gpu):
                raise MisuseError(f"Target {text!r} names the GPU {gpu!r}; write its compute capability, such as sm89.")
        if len(set(gpus)) != len(gpus):
            raise MisuseError(f"Target {text!r} names a GPU twice.")
        module = FAMILIES[family]
        unknown = [gpu for gpu in gpus if gpu not in RTX_GPUS]
        if module == "tensorrt_rtx" and unknown:
            raise MisuseError(
                f"TensorRT-RTX does not build for {unknown[0]}: it knows {', '.join(RTX_GPUS)}, the GPUs of PCs and "
                f"workstations. For data centre GPUs use --target tensorrt, on a machine that has one."
            )
        if module == "tensorrt" and len(gpus) > 1:
            raise MisuseError(
                f"Target {text!r} names {len(gpus)} GPUs; TensorRT builds for the one that is present. Build one "
                "engine for each, or ask for --hardware-compatible."
            )
        return cls(text, module, gpus)

    @property
    def directory(self) -> str:
        """Where its engine lies in a bundle."""
        return self.text.replace(":", "-").replace(",", "-")
