"""The builder of `ort-cpu`: lowered for ONNX Runtime's CPU kernels, proved, and described for the manifest."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.engines.options import BuildOptions
from piston.runtime.kernels import TARGET, require


def check_ort_cpu(target: str) -> None:
    """Raise MisuseError for a target that names a machine; EngineError or MissingExtraError without the kernels.

    ONNX Runtime chooses its kernels where it runs; Piston's own are a target of their own.
    """
    if target not in ("ort-cpu", TARGET):
        raise MisuseError(
            f"There is no target {target!r}; ort-cpu runs on every CPU, {TARGET} on Piston's own kernels."
        )
    if target == TARGET:
        require()


def ask_ort_cpu(target: str, model: Manifest, options: BuildOptions) -> dict[str, Any]:
    """What the engine is built with."""
    del target
    if DECODER not in model.graphs:
        if options.lm_head is not None:
            raise MisuseError(f"--lm-head is for language models; {model.model.name} is for {model.task}.")
        return {
            "max_batch": options.max_batch,
            "max_length": options.max_length,
            "require_int8": options.require_int8,
        }
    # fp+kv8 is float, too
    default = "float32" if model.model.scheme.partition("+")[0] == "fp" else "int8"
    return {
        "max_batch": options.max_batch,
        "max_length": options.max_length,
        "lm_head": options.lm_head or default,
        "require_int8": options.require_int8,
    }


def build_ort_cpu(
    target: str, source: Path, model: Manifest, work: Path, asked: Mapping[str, Any], progress: Progress
) -> EngineSpec:
    """Write the engine below `work`; raises as `piston.engines.build` does.

    That of Piston's own kernels is made from ONNX Runtime's, once this is proved, and proved against it.
    """
    if target == TARGET:
        with tempfile.TemporaryDirectory(dir=work) as aside:
            plain = _build_plain("ort-cpu", source, model, Path(aside), asked, progress)
            return _build_kernels(plain, Path(aside), work, asked, progress)
    return _build_plain(target, source, model, work, asked, progress)


def _build_kernels(
    plain: EngineSpec, aside: Path, work: Path, asked: Mapping[str, Any], progress: Progress
) -> EngineSpec:
    from piston.engines.equivalence.replaced_nodes import check_replaced
    from piston.engines.ort.cpu_graph import count_operators
    from piston.engines.ort.cpu_kernels import build_kernels

    with progress.phase(f"lowering for {TARGET}"):
        built = build_kernels(aside / plain.path, work / TARGET.replace(":", "-"))
    with progress.phase("checking the kernels against what they replace"):
        parity = check_replaced(aside / plain.path, built.path, plain.cache, max_length=asked["max_length"])
    replaced = {name: getattr(built, name) for name in ("attention", "linears", "gated", "norms", "blocks", "tables")}
    got = {
        **plain.actual,
        "operators": count_operators(built.path),
        "weights_bytes": built.weights_bytes,
        "own_kernels": {**replaced, "parity": dataclasses.asdict(parity)},
    }
    path = built.path.relative_to(work).as_posix()
    return EngineSpec.of(target=TARGET, path=path, cache=plain.cache, requested=dict(asked), actual=got)


def _build_plain(
    target: str, source: Path, model: Manifest, work: Path, asked: Mapping[str, Any], progress: Progress
) -> EngineSpec:
    from piston.engines.equivalence.answers import check_parity, reference_of
    from piston.engines.equivalence.packed_products import check_packed_products
    from piston.engines.linear_work import check_int8
    from piston.engines.ort.cpu_graph import build_ort, describe

    int8_head = asked["lm_head"] == "int8"
    with progress.phase(f"lowering for {target}"):
        built = build_ort(source / GRAPH, work / target, asked["max_length"], int8_head=int8_head)
    if asked["require_int8"] is not None:
        check_int8(built.work, asked["require_int8"])
    with (
        progress.phase("checking it against the canonical graph"),
        reference_of(source / GRAPH, model, work, int8_head=int8_head) as path,
    ):
        kernels = check_packed_products(built.path)
        cache = model.cache.with_dtype(built.cache_type)
        parity = check_parity(path, built.path, cache, max_length=asked["max_length"], windows=built.lowered.windows)
    return EngineSpec.of(
        target=target,
        path=built.path.relative_to(work).as_posix(),
        cache=cache,
        requested=dict(asked),
        actual={
            **describe(built),
            "max_positions": asked["max_length"],
            "parity": dataclasses.asdict(parity),
            "kernels": dataclasses.asdict(kernels),
        },
    )
