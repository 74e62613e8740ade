"""The one call to the compiler, for TensorRT and TensorRT-RTX alike: a file and two profiles in, a plan out.

Networks are strongly typed: the file says in what everything is computed, and no flag changes it.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.console import Progress, note
from piston.core.errors import EngineError, Error
from piston.core.outputs import write_output
from piston.engines.tensorrt.allowed import check_network
from piston.engines.tensorrt.build_monitor import build_monitor
from piston.engines.tensorrt.compiler_options import CompilerOptions
from piston.engines.tensorrt.profiles import Shapes
from piston.engines.tensorrt.target import Target
from piston.runtime.backends.tensorrt.log import accepted, log_of, open_module, reported

POLL = 0.1  # seconds between looks for Ctrl-C


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the compiler made of a file."""

    compiler_version: str
    layers: int
    plan_bytes: int


def compile_plan(
    path: Path,
    goal: Path,
    target: Target,
    profiles: dict[str, Shapes],
    options: CompilerOptions,
    progress: Progress,
) -> Compiled:
    """Build the plan `goal` from the ONNX file `path`, for the GPUs of `target`.

    Raises:
        MissingExtraError: the compiler is not installed.
        EngineError: it refuses the file; the message holds its own words.
        KeyboardInterrupt: Ctrl-C, after the compiler has stopped in good order.
    """
    module = open_module(target.module)
    log = log_of(module)
    with reported(log, f"building for {target.text}"):
        builder = accepted(module.Builder(log))
        # Bit 0 in TensorRT 11, bit 1 in 10: never a number.
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = module.OnnxParser(network, log)
        _parse(parser, path)
        check_network(network, module, ir.load(path).graph)
        config = builder.create_builder_config()
        _choose_gpus(module, config, target)
        for shapes in profiles.values():
            config.add_optimization_profile(_profile(builder, shapes))
        _apply(module, config, options)
        plan = _build(module, builder, network, config, progress)
        goal.write_bytes(memoryview(accepted(plan)))
        if options.timing_cache is not None:
            _keep_timings(options.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
        return Compiled(
            compiler_version=str(module.__version__), layers=network.num_layers, plan_bytes=goal.stat().st_size
        )


def _keep_timings(path: Path, data: bytes) -> None:
    """Write the timing cache; that it cannot be written is told, and costs no finished build."""
    try:
        write_output(path, data)
    except Error as problem:
        note(f"warning: the timing cache is not kept: {problem}")


def _parse(parser: Any, path: Path) -> None:
    if parser.parse_from_file(str(path)):
        return
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    if not problems:
        raise EngineError("TensorRT's parser refuses the graph, and gave no reason.")
    first = problems[0]
    node = f"{first.node_name()} ({first.node_operator()})"
    raise EngineError(f"TensorRT's parser refuses the graph at {node}: {' '.join(first.desc().split())}.")


def _choose_gpus(module: Any, config: Any, target: Target) -> None:
    if target.module == "tensorrt_rtx" and target.gpus:
        config.num_compute_capabilities = len(target.gpus)
        for index, gpu in enumerate(target.gpus):
            accepted(config.set_compute_capability(getattr(module.ComputeCapability, gpu.upper()), index))
    if target.module == "tensorrt_rtx":
        # The runtime gives contexts their memory; nothing is then allocated while a step is captured.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.max_aux_streams = 0  # one stream: what a captured graph replays best


def _profile(builder: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in shapes.items():
        profile.set_shape(name, low, best, high)
    return profile


def _apply(module: Any, config: Any, options: CompilerOptions) -> None:
    flags = {
        "refit": ["REFIT"],
        "weight_streaming": ["WEIGHT_STREAMING"],
        "sparse_weights": ["SPARSE_WEIGHTS"],
        "version_compatible": ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"],
    }
    for name in options.given:
        for flag in flags.get(name, []):
            config.set_flag(getattr(module.BuilderFlag, flag))
    if options.hardware_compatible is not None:
        names = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
        level = getattr(module.HardwareCompatibilityLevel, names[options.hardware_compatible])
        config.hardware_compatibility_level = level
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        accepted(config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False))


def _build(module: Any, builder: Any, network: Any, config: Any, progress: Progress) -> Any:
    """Build in a thread of its own, so that Ctrl-C reaches this one and the compiler is told to stop."""
    monitor = build_monitor(module, progress)
    config.progress_monitor = monitor
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(builder.build_serialized_network(network, config))
        except Exception as problem:  # noqa: BLE001 - raised again below, in the thread that waits
            results.append(problem)

    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    interrupt: KeyboardInterrupt | None = None
    while not results:
        try:
            if thread.ident is None:
                thread.start()
            thread.join(POLL)
        except KeyboardInterrupt as problem:  # Terminated is one, too
            monitor.cancel()  # and wait: a second one changes nothing, the compiler stops after its present step
            interrupt = problem
    config.progress_monitor = None
    if interrupt is not None:
        raise interrupt
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
