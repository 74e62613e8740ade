"""The options of `piston build` that are for TensorRT targets, and where compiled engines are kept."""

import argparse
from pathlib import Path

from piston.core.cache_dir import VARIABLE, cache_dir
from piston.core.units import parse_size
from piston.engines.options import PRECISIONS
from piston.engines.tensorrt.compiler_options import HARDWARE_COMPATIBLE, CompilerOptions


def add_compiler_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them in a group of their own."""
    group = parser.add_argument_group("TensorRT targets", "what a target does not have is refused, with the reason")
    group.add_argument(
        "--dtype",
        choices=PRECISIONS,
        help="of activations, cache and float weights (default: fp16, or bf16 where the model goes beyond fp16); of "
        "encoders on ort-cpu:avx512 bf16, of float products",
    )
    group.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="measured kernels: read if there, then written"
    )
    group.add_argument("--optimization-level", type=int, metavar="N", help="0 (fast build) to 5 (default: 3)")
    group.add_argument("--workspace", metavar="SIZE", help="the most scratch memory a kernel may take, such as 2GiB")
    group.add_argument("--refit", action="store_true", help="weights may be replaced later")
    group.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    group.add_argument(
        "--version-compatible", action="store_true", help="a plan for later versions too; never with host code in it"
    )
    group.add_argument(
        "--hardware-compatible",
        choices=HARDWARE_COMPATIBLE,
        help="a plan for Ampere and later, or any GPU of this kind",
    )
    where = f"(default: engines below ${VARIABLE}, or below piston in the user's cache directory)"
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help=f"where compiled engines are kept {where}")
    group.add_argument(
        "--no-cache", action="store_true", help="compile even what was compiled before, and keep nothing"
    )


def compiler_options(arguments: argparse.Namespace) -> CompilerOptions:
    """What was given; raises MisuseError."""
    return CompilerOptions(
        timing_cache=arguments.timing_cache,
        refit=arguments.refit,
        weight_streaming=arguments.weight_streaming,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        optimization_level=arguments.optimization_level,
        workspace=None if arguments.workspace is None else parse_size(arguments.workspace, "--workspace"),
    )


def engine_cache_dir(arguments: argparse.Namespace) -> Path | None:
    """Where compiled engines are kept, None for nowhere."""
    if arguments.no_cache:
        return None
    if arguments.cache_dir is not None:
        return Path(arguments.cache_dir)
    return cache_dir("engines")
