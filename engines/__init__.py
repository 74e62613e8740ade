"""A model directory becomes a bundle of engines: lowered, checked against the canonical graph, and packed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from piston.core.arguments import checked_arguments
from piston.core.atomic_dir import atomic_dir, check_free
from piston.core.bundle import GRAPH
from piston.core.bundle.external_data import check_external_data, plain_files
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.errors import BundleError, MisuseError
from piston.core.outputs import check_output_files
from piston.engines.options import LM_HEADS, PRECISIONS, BuildJob, BuildOptions, LmHead, Precision
from piston.engines.registry import AVAILABLE, family_of
from piston.engines.tensorrt.compiler_options import CompilerOptions
from piston.runtime.kernels import TARGET
from piston.runtime.memory_budget import MOST_ROWS

Choice = TypeVar("Choice")
DEFAULT_TARGETS = ("ort-cpu",)
DEFAULT_BATCH, DEFAULT_LENGTH = 8, 4096


@checked_arguments
def build(  # noqa: PLR0913 - the options of one command
    model_dir: str | Path,
    out: str | Path,
    targets: Sequence[str] = DEFAULT_TARGETS,
    *,
    max_batch: int = DEFAULT_BATCH,
    max_length: int | None = None,
    lm_head: LmHead | None = None,
    require_int8: float | None = None,
    sparsity: bool = True,
    dtype: Precision | None = None,
    compiler: CompilerOptions | None = None,
    cache_dir: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build an engine for each target and write the bundle `out`.

    The bundle is loaded with `max_batch` and `max_length` (default: the model's positions, at most 4096) unless the
    user says otherwise; its rotary tables end at `max_length`. `lm_head` says in what weights a float head is stored;
    by default it stays float32 in a float model, and becomes INT8 in blocks in a quantized one. Without `sparsity`
    weights that are 2:4 sparse are stored and multiplied like others, where a target would not. `dtype` (default fp16,
    or bf16 where the model's values go beyond fp16) and `compiler` are for TensorRT targets, whose engines are kept in
    `cache_dir` and taken from there; with bf16 the float products of encoders on `ort-cpu:avx512` are of bfloat16.

    Raises:
        MisuseError: an unknown target, an option no target has, a size the model does not have, or an output that is
            there.
        MissingExtraError: a compiler is not installed.
        ShortfallError: less than the share `require_int8` of the linear layers' multiply-adds runs in INT8.
        BundleError: the model directory cannot be opened, or its files are not the recorded ones.
        ParityError: a lowered graph does not answer as the canonical one.
        EngineError: a backend refuses it. In every case nothing is left at `out`.
    """
    source, goal, progress = Path(model_dir), Path(out), progress or Progress(quiet=True)
    check_targets(targets)
    check_free(goal, overwrite=overwrite, reads=[source])
    model = Manifest.read(source)
    options = BuildOptions(
        max_batch=max_batch,
        max_length=_checked_sizes(source, model, max_batch, max_length),
        lm_head=_checked(lm_head, LM_HEADS, "lm_head"),
        require_int8=_checked_share(require_int8),
        sparsity=sparsity,
        dtype=_checked(dtype, PRECISIONS, "dtype"),
        compiler=compiler or CompilerOptions(),
        cache_dir=cache_dir,
    )
    _check_options(targets, options)
    builders = {target: family_of(target).builder(target, model) for target in targets}
    asked = {target: family_of(target).ask(target, model, options) for target in targets}
    check_output_files({"--timing-cache": options.compiler.timing_cache}, [source, goal])
    with progress.phase("verifying the model directory"):
        model.verify(source)
        check_external_data(source, model)
    from piston.engines.bundle import write_bundle
    from piston.engines.equivalence.golden import recorder_of

    with atomic_dir(goal, overwrite=overwrite, reads=[source]) as work, plain_files(source, goal) as plain:
        engines = [
            builders[target](
                BuildJob(
                    target=target,
                    source=plain,
                    model=model,
                    work=work,
                    requested=asked[target],
                    options=options,
                    progress=progress,
                )
            )
            for target in targets
        ]
        if record := recorder_of(model):
            with progress.phase("recording answers for piston verify"):
                record(work, plain / GRAPH, model, engines)
        with progress.phase("hashing"):
            return write_bundle(work, plain, model, engines)


def check_targets(targets: Sequence[str]) -> None:
    """Raise MisuseError for a target that does not exist, or is named twice."""
    if not targets:
        raise MisuseError(f"No target was given; available: {AVAILABLE}.")
    for target in targets:
        family_of(target).check(target)
    if len(set(targets)) != len(targets):
        raise MisuseError(f"A target is named twice: {', '.join(targets)}.")


def _check_options(targets: Sequence[str], options: BuildOptions) -> None:
    """Nothing is accepted and ignored: an option needs a target that has it."""
    if not options.sparsity and not any(family_of(target).has_compiler or target == TARGET for target in targets):
        raise MisuseError(
            f"--no-sparsity is for {TARGET} and TensorRT targets, and none was given; {', '.join(targets)} stores 2:4 "
            "sparse weights like others."
        )
    if options.dtype and not any(family_of(target).has_compiler or target == TARGET for target in targets):
        raise MisuseError(f"--dtype is for {TARGET} and TensorRT targets, and none was given: {', '.join(targets)}.")
    given = options.compiler.given
    if given and not any(family_of(target).has_compiler for target in targets):
        option = given[0].replace("_", "-")
        raise MisuseError(f"--{option} is for TensorRT targets, and none was given: {', '.join(targets)}.")


def _checked_sizes(source: Path, model: Manifest, max_batch: int, max_length: int | None) -> int:
    """The length to build for."""
    if model.kind != "model":
        raise BundleError(f"{source} is a bundle already; give the model directory that `piston export` wrote.")
    if MODULE in model.graphs:
        for option, is_given in (("--max-length", max_length is not None), ("--max-batch", max_batch != DEFAULT_BATCH)):
            if is_given:
                raise MisuseError(f"{option} is for models of text; the inputs of a module say how large they may be.")
        return 0
    positions = model.model.max_positions
    length = min(positions, DEFAULT_LENGTH) if max_length is None else max_length
    if not 1 <= max_batch <= MOST_ROWS:
        raise MisuseError(f"--max-batch {max_batch} must be at least 1, and at most {MOST_ROWS:,}.")
    least = 2
    if "speech" in model.settings:
        from piston.runtime.golden_sounds import least_length

        least = least_length(model)
    if not least <= length <= positions:
        raise MisuseError(
            f"--max-length {length} must be from {least} to {positions}, the positions of {model.model.name}; "
            "export with a longer --context for more."
        )
    return length


def _checked(value: Choice | None, choices: Sequence[Choice], name: str) -> Choice | None:
    if value is not None and value not in choices:
        raise MisuseError(f"There is no {name} {value!r}; there are {', '.join(map(str, choices))}.")
    return value


def _checked_share(require_int8: float | None) -> float | None:
    if require_int8 is not None and not 0 < require_int8 <= 1:
        raise MisuseError(f"require_int8={require_int8} is no share above 0, such as 0.95.")
    return require_int8


__all__ = ["AVAILABLE", "DEFAULT_BATCH", "DEFAULT_LENGTH", "DEFAULT_TARGETS", "LM_HEADS", "build", "check_targets"]
