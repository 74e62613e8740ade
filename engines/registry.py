"""Target family -> how its targets are read, what they are built with, and the builder. One entry a backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.engines.options import BuildOptions
from piston.engines.ort.cpu import ask_ort_cpu, build_ort_cpu, check_ort_cpu
from piston.engines.ort.cuda_target import ask_ort_cuda, build_ort_cuda, check_ort_cuda
from piston.engines.tensorrt.family import ask_tensorrt, build_cached, check_tensorrt

# Target, source directory, its manifest, directory to write to, what was asked, options, progress.
Builder = Callable[[str, Path, Manifest, Path, Mapping[str, Any], BuildOptions, Progress], EngineSpec]


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table."""

    form: str  # how its targets are written
    check: Callable[[str], None]  # raises MisuseError for a target it has not got
    ask: Callable[[str, Manifest, BuildOptions], dict[str, Any]]  # raises MisuseError for an option it has not got
    build: Builder  # of decoders
    has_compiler: bool  # takes --dtype and the options of the compiler
    build_encoder: Builder | None = None  # None: the family has decoders alone

    def builder(self, target: str, model: Manifest) -> Builder:
        """What builds the graphs of a model; raises MisuseError where the target does not have them."""
        if DECODER in model.graphs:
            return self.build
        if self.build_encoder is None or target != "ort-cpu":
            raise MisuseError(
                f"{target} has no engines for {model.task} yet; build {model.model.name} with --target ort-cpu."
            )
        return self.build_encoder


def _build_ort_cpu(  # noqa: PLR0913, PLR0917 - what every builder gets
    target: str,
    source: Path,
    model: Manifest,
    work: Path,
    asked: Mapping[str, Any],
    options: BuildOptions,
    progress: Progress,
) -> EngineSpec:
    del options
    return build_ort_cpu(target, source, model, work, asked, progress)


def _build_encoder(  # noqa: PLR0913, PLR0917 - what every builder gets
    target: str,
    source: Path,
    model: Manifest,
    work: Path,
    asked: Mapping[str, Any],
    options: BuildOptions,
    progress: Progress,
) -> EngineSpec:
    from piston.engines.ort.encoder import build_encoder

    del options
    return build_encoder(target, source, model, work, asked, progress)


FAMILIES: dict[str, Family] = {
    "ort-cpu": Family(
        "ort-cpu[:avx512]", check_ort_cpu, ask_ort_cpu, _build_ort_cpu, has_compiler=False, build_encoder=_build_encoder
    ),
    "ort-cuda": Family("ort-cuda", check_ort_cuda, ask_ort_cuda, build_ort_cuda, has_compiler=False),
    "tensorrt-rtx": Family("tensorrt-rtx[:smXX,...]", check_tensorrt, ask_tensorrt, build_cached, has_compiler=True),
    "tensorrt": Family("tensorrt[:smXX]", check_tensorrt, ask_tensorrt, build_cached, has_compiler=True),
}
AVAILABLE = ", ".join(family.form for family in FAMILIES.values())


def family_of(target: str) -> Family:
    """The entry of a target; raises MisuseError where there is none."""
    family = FAMILIES.get(target.partition(":")[0])
    if family is None:
        raise MisuseError(f"There is no target {target!r}; available: {AVAILABLE}.")
    return family
