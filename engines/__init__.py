"""A model directory becomes a bundle of engines: lowered, proved equal to the canonical graph, and packed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from piston.runtime.console import Progress
from piston.runtime.errors import BundleError, MisuseError
from piston.runtime.manifest import EngineSpec, Manifest
from piston.runtime.staging import check_free, staged_dir

TARGETS = ("ort-cpu",)
PLANNED = ("ort-cuda", "tensorrt", "tensorrt-rtx")
DEFAULT_BATCH, DEFAULT_LENGTH = 8, 4096
CANONICAL = "model.onnx"
LmHead = Literal["float32", "int8"]
LM_HEADS: tuple[LmHead, ...] = get_args(LmHead)


def build(  # noqa: PLR0913 - the options of one command
    model_dir: str | Path,
    out: str | Path,
    targets: Sequence[str] = TARGETS,
    *,
    max_batch: int = DEFAULT_BATCH,
    max_length: int | None = None,
    lm_head: LmHead | None = None,
    require_int8: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build an engine for each target and write the bundle `out`.

    The bundle is loaded with `max_batch` and `max_length` (default: the model's positions, at most 4096) unless the
    user says otherwise; its rotary tables end at `max_length`. `lm_head` says in what weights a float head is stored;
    by default it stays float32 in a float model, and becomes INT8 in blocks in a quantized one.

    Raises:
        MisuseError: an unknown target, a size the model does not have, or an output that is there.
        ShortfallError: less than the share `require_int8` of the linear layers' multiply-adds runs in INT8.
        BundleError: the model directory cannot be opened, or its files are not the recorded ones.
        ParityError: a lowered graph does not answer as the canonical one.
        EngineError: a backend refuses it. In every case nothing is left at `out`.
    """
    source, goal, progress = Path(model_dir), Path(out), progress or Progress(quiet=True)
    check_targets(targets)
    _check_apart(source, goal)
    check_free(goal, overwrite=overwrite)
    model = Manifest.read(source)
    asked = {
        "max_batch": max_batch,
        "max_length": _checked_sizes(source, model, max_batch, max_length),
        "lm_head": _checked_head(model, lm_head),
        "require_int8": _checked_share(require_int8),
    }
    with progress.phase("verifying the model directory"):
        model.verify(source)
    from piston.engines.bundle import write_bundle
    from piston.engines.expected import record_answers

    with staged_dir(goal, overwrite=overwrite) as work:
        engines = [_build_engine(target, source, model, work, asked, progress) for target in targets]
        with progress.phase("recording answers for piston verify"):
            record_answers(work, source / CANONICAL, model, engines)
        with progress.phase("hashing"):
            return write_bundle(work, source, model, engines)


def check_targets(targets: Sequence[str]) -> None:
    """Raise MisuseError for a target that does not exist, does not exist yet, or is named twice."""
    available = ", ".join(TARGETS)
    if not targets:
        raise MisuseError(f"No target was given; available: {available}.")
    for target in targets:
        if target in TARGETS:
            continue
        if target.partition(":")[0] in PLANNED:
            raise MisuseError(f"Target {target!r} is not built by this version of Piston yet; available: {available}.")
        raise MisuseError(f"There is no target {target!r}; available: {available}.")
    if len(set(targets)) != len(targets):
        raise MisuseError(f"A target is named twice: {', '.join(targets)}.")


def _check_apart(source: Path, goal: Path) -> None:
    """--overwrite must not replace what is being read."""
    if source.resolve().is_relative_to(goal.resolve()):
        raise MisuseError(f"The output {goal} would replace the model directory {source}; choose another -o.")


def _checked_sizes(source: Path, model: Manifest, max_batch: int, max_length: int | None) -> int:
    """The length to build for."""
    if model.kind != "model":
        raise BundleError(f"{source} is a bundle already; give the model directory that `piston export` wrote.")
    positions = model.model.max_positions
    length = min(positions, DEFAULT_LENGTH) if max_length is None else max_length
    if max_batch < 1:
        raise MisuseError(f"--max-batch {max_batch} must be at least 1.")
    if not 2 <= length <= positions:  # noqa: PLR2004
        raise MisuseError(
            f"--max-length {length} must be from 2 to {positions}, the positions of {model.model.name}; "
            "export with a longer --context for more."
        )
    return length


def _checked_head(model: Manifest, lm_head: LmHead | None) -> LmHead:
    if lm_head is None:
        return "float32" if model.model.scheme == "fp" else "int8"
    if lm_head not in LM_HEADS:
        raise MisuseError(f"There is no lm_head {lm_head!r}; there are {', '.join(LM_HEADS)}.")
    return lm_head


def _checked_share(require_int8: float | None) -> float | None:
    if require_int8 is not None and not 0 < require_int8 <= 1:
        raise MisuseError(f"require_int8={require_int8} is no share above 0, such as 0.95.")
    return require_int8


def _build_engine(
    target: str, source: Path, model: Manifest, work: Path, asked: dict[str, Any], progress: Progress
) -> EngineSpec:
    from piston.engines.build_ort import build_ort, describe
    from piston.engines.prove import prove, reference_of
    from piston.engines.prove_kernels import prove_kernels
    from piston.engines.required import check_int8

    int8_head = asked["lm_head"] == "int8"
    with progress.phase(f"lowering for {target}"):
        built = build_ort(source / CANONICAL, work / target, asked["max_length"], int8_head=int8_head)
    if asked["require_int8"] is not None:
        check_int8(built.work, asked["require_int8"])
    with (
        progress.phase("proving it equal to the canonical graph"),
        reference_of(source / CANONICAL, model, work, int8_head=int8_head) as path,
    ):
        kernels = prove_kernels(built.path)
        cache = dataclasses.replace(model.cache, dtype=built.cache_type)
        proof = prove(path, built.path, cache, max_length=asked["max_length"], windows=built.lowered.windows)
    return EngineSpec(
        target=target,
        path=built.path.relative_to(work).as_posix(),
        cache=cache,
        asked=asked,
        got={
            **describe(built),
            "max_positions": asked["max_length"],
            "proof": dataclasses.asdict(proof),
            "kernels": dataclasses.asdict(kernels),
        },
    )
