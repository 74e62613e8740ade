"""Target family -> how its targets are read, what they are built with, and the builder. One entry a backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from piston.core.bundle.interface import DECODER, ENCODER, MODULE
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.errors import MisuseError
from piston.engines.options import Builder, BuildJob, BuildOptions
from piston.engines.ort.cpu import ask_ort_cpu, build_ort_cpu, check_ort_cpu
from piston.engines.ort.cuda_target import ask_ort_cuda, build_ort_cuda, check_ort_cuda
from piston.engines.tensorrt.family import ask_tensorrt, build_cached, check_tensorrt
from piston.runtime.kernels import TARGET

ON_OWN_KERNELS = (DECODER, ENCODER, f"{DECODER}+{ENCODER}")  # the graphs that ort-cpu:avx512 has


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table."""

    form: str  # how its targets are written
    check: Callable[[str], None]  # raises MisuseError for a target that does not exist
    ask: Callable[[str, Manifest, BuildOptions], dict[str, Any]]  # raises MisuseError for an option it does not have
    builders: Mapping[str, Builder]  # by the graphs of the model, as `graphs_of` names them
    has_compiler: bool  # takes --dtype and the options of the compiler

    def builder(self, target: str, model: Manifest) -> Builder:
        """What builds the graphs of a model; raises MisuseError where the target does not have them."""
        kind = graphs_of(model)
        found = self.builders.get(kind)
        if found is None or (target == TARGET and kind not in ON_OWN_KERNELS):
            raise MisuseError(
                f"{target} has no engines for {model.task} yet; build {model.model.name} with --target ort-cpu."
            )
        return found


def graphs_of(model: Manifest) -> str:
    """The names of a model's graphs, such as "decoder"."""
    return "+".join(sorted(model.graphs))


def _build_encoder(job: BuildJob) -> EngineSpec:
    from piston.engines.ort.encoder import build_encoder

    return build_encoder(job)


def _build_module(job: BuildJob) -> EngineSpec:
    from piston.engines.ort.module import build_module

    return build_module(job)


def _build_encoder_decoder(job: BuildJob) -> EngineSpec:
    from piston.engines.encoder_decoder import build_both

    return build_both(job, _build_encoder, build_ort_cpu)


def _build_encoder_decoder_tensorrt(job: BuildJob) -> EngineSpec:
    from piston.engines.encoder_decoder import build_both

    return build_both(job, partial(build_cached, graph=ENCODER), build_cached)


_ORT_CPU: dict[str, Builder] = {
    DECODER: build_ort_cpu,
    ENCODER: _build_encoder,
    f"{DECODER}+{ENCODER}": _build_encoder_decoder,
    MODULE: _build_module,
}
_ORT_CUDA: dict[str, Builder] = {DECODER: build_ort_cuda, ENCODER: partial(build_ort_cuda, graph=ENCODER)}
_TENSORRT: dict[str, Builder] = {
    DECODER: build_cached,
    ENCODER: partial(build_cached, graph=ENCODER),
    f"{DECODER}+{ENCODER}": _build_encoder_decoder_tensorrt,
}
FAMILIES: dict[str, Family] = {
    "ort-cpu": Family("ort-cpu[:avx512]", check_ort_cpu, ask_ort_cpu, _ORT_CPU, has_compiler=False),
    "ort-cuda": Family("ort-cuda", check_ort_cuda, ask_ort_cuda, _ORT_CUDA, has_compiler=False),
    "tensorrt-rtx": Family("tensorrt-rtx[:smXX,...]", check_tensorrt, ask_tensorrt, _TENSORRT, has_compiler=True),
    "tensorrt": Family("tensorrt[:smXX]", check_tensorrt, ask_tensorrt, _TENSORRT, has_compiler=True),
}
AVAILABLE = ", ".join(family.form for family in FAMILIES.values())


def family_of(target: str) -> Family:
    """The entry of a target; raises MisuseError where there is none."""
    family = FAMILIES.get(target.partition(":")[0])
    if family is None:
        raise MisuseError(f"There is no target {target!r}; available: {AVAILABLE}.")
    return family
