"""The `build` verb."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.core.bundle.interface import DECODER, MODULE
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.gates import INT8, add_gate_arguments, gates_of
from piston.engines import AVAILABLE, DEFAULT_BATCH, DEFAULT_LENGTH, DEFAULT_TARGETS, LM_HEADS, build
from piston.engines.compiler_cli import add_compiler_arguments, compiler_options, engine_cache_dir
from piston.engines.registry import family_of

ARITHMETIC = {
    "int8": "in INT8",
    "weights8": "with 8-bit weights",
    "weights4": "with 4-bit weights",
    "float": "in float",
    "unknown": "not found",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston build`."""
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="what `piston export` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the bundle to write")
    parser.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        help=f"what to build for, repeatable: {AVAILABLE} (default: {DEFAULT_TARGETS[0]})",
    )
    parser.add_argument(
        "--max-batch", type=int, default=DEFAULT_BATCH, metavar="N", help=f"rows at once (default: {DEFAULT_BATCH})"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"positions of a row (default: the model's, at most {DEFAULT_LENGTH})",
    )
    parser.add_argument(
        "--lm-head",
        choices=LM_HEADS,
        help="weights of a float lm_head (default: float32, or int8 where the model is quantized)",
    )
    add_gate_arguments(
        parser,
        "'int8>=95%': the part of the linear layers, lm_head aside, that really runs in INT8",
        "--require-int8",
        is_repeatable=False,
    )
    parser.add_argument(
        "--no-sparsity",
        action="store_true",
        help="store and multiply 2:4 sparse weights like others, to compare (ort-cpu:avx512, TensorRT targets)",
    )
    add_compiler_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace BUNDLE if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Build, and print what came of it and how it was proved."""
    targets = arguments.target or DEFAULT_TARGETS
    manifest = build(
        arguments.model_dir,
        arguments.output,
        targets,
        max_batch=arguments.max_batch,
        max_length=arguments.max_length,
        lm_head=arguments.lm_head,
        require_int8=_required_int8(arguments),
        sparsity=not arguments.no_sparsity,
        dtype=arguments.dtype,
        compiler=compiler_options(arguments),
        cache_dir=engine_cache_dir(arguments) if any(family_of(target).has_compiler for target in targets) else None,
        overwrite=arguments.overwrite,
        progress=Progress(quiet=arguments.quiet),
    )
    size = sum(record.size for record in manifest.files.values())
    if arguments.json:
        print_json(
            {"output": str(arguments.output), "bytes": size, "engines": [_as_json(spec) for spec in manifest.engines]}
        )
        return 0
    print_text(f"{arguments.output}: {manifest.model.architecture}, {size / 1e6:,.0f} MB")
    for spec in manifest.engines:
        _print_engine(spec)
    _warn(manifest)
    return 0


def _required_int8(arguments: argparse.Namespace) -> float | None:
    """The largest share that a gate wants; None without a gate."""
    gates = gates_of(arguments, {INT8.name: INT8}, "--require-int8")
    for gate in gates:
        if gate.sign != ">=" or not gate.bound:
            raise MisuseError(f"--require {gate.text!r}: write a share above 0 with >=, such as int8>=95%.")
    return max((gate.bound for gate in gates), default=None)


def _as_json(spec: EngineSpec) -> dict[str, Any]:
    return {"target": spec.target, "path": spec.path, "requested": dict(spec.requested), "actual": dict(spec.actual)}


def _print_engine(spec: EngineSpec) -> None:
    if "compiler" in spec.actual:
        _print_compiled(spec)
        return
    got, asked, parity = spec.actual, spec.requested, spec.actual.get("parity", {})
    if MODULE in spec.files:
        print_text(f"{spec.target}: {got['dtype']}; linears: {_shares(got['linears'])}{_sparse(got)}")
        print_text(
            f"parity: outputs within {parity['max_abs']:.1e} of the canonical graph's over {parity['examples']} "
            "examples"
        )
        return
    if DECODER not in spec.files:
        print_text(
            f"{spec.target}: {got['dtype']}, batch up to {asked['max_batch']}, length up to {asked['max_length']}; "
            f"linears: {_shares(got['linears'])}{_sparse(got)}"
        )
        for each in got.get("parities", []):
            print_text(f"parity in {each['dtype']}, on ONNX Runtime's CPU kernels: {_compared(each)}")
        if parity:
            print_text(
                f"parity: outputs within {parity['max_relative']:.1e} of the canonical graph's (allowed "
                f"{parity['bound']:.1e}) over {parity['rows']} rows of {parity['shortest']} to {parity['longest']} "
                "tokens"
            )
        if moved := got.get("own_kernels", {}).get("bfloat16_moved"):
            print_text(f"products in bfloat16: outputs within {moved:.1e} of those in float32 over the same rows")
        return
    print_text(
        f"{spec.target}: {got['dtype']}, cache {got['cache']}, batch up to {asked['max_batch']}, "
        f"length up to {asked['max_length']}; "
        f"attention fused in {got['attention_fused']} of {got['attention_layers']} "
        f"(rotary in {got['rotary_fused']}, packed in {got['qkv_packed']}), {got['norms_fused']} residual norms"
    )
    print_text(f"linears: {_shares(got['linears'])}; lm_head {ARITHMETIC[got['lm_head']]}{_sparse(got)}")
    print_text(
        f"parity: logits within {parity['max_abs']:.1e} of the canonical graph's (allowed {parity['bound']:.1e}), "
        f"the same greedy tokens over {parity['steps']} decode steps of {len(parity['prompt_lengths'])} prompts"
    )


def _print_compiled(spec: EngineSpec) -> None:
    got = spec.actual
    gpus = ", ".join(got["compute_capabilities"]) or "the GPU that is present"
    cache = f", cache {got['cache']}" if "cache" in got else ""
    chunk = f", prefill in chunks of {got['chunk']}" if "chunk" in got else ""
    print_text(
        f"{spec.target}: {got['compiler']} {got['compiler_version']} for {gpus}; {got['dtype']}{cache}, "
        f"batch up to {got['max_batch']}, length up to {got['max_positions']}{chunk}; "
        f"{got['plan_bytes'] / 1e6:,.0f} MB"
    )
    head = f"; lm_head {ARITHMETIC[got['lm_head']]}" if "lm_head" in got else ""
    print_text(f"linears: {_shares(got['linears'])}{head}{_sparse(got)}")
    for parity in [*got.get("encoder", {}).get("parities", []), *got["parities"]]:
        print_text(f"parity in {parity['dtype']}, on ONNX Runtime: {_compared(parity)}")
    note(f"note: {spec.target} has been proved and compiled here; run `piston verify` where its GPU is")


def _compared(parity: Mapping[str, Any]) -> str:
    """What was compared of an engine that was compiled: rows of an encoder, or steps of a decoder."""
    if "rows" in parity:
        return (
            f"outputs within {parity['relative']:.1e} of the canonical graph's (allowed {parity['bound']:.1e}) over "
            f"{parity['rows']} rows of {parity['shortest']} to {parity['longest']} tokens"
        )
    return (
        f"logits within {parity['max_abs']:.1e} of the canonical graph's (allowed {parity['bound']:.1e}) over "
        f"{parity['steps']} steps; {parity['tokens']} tokens chosen as they should be"
    )


def _shares(linears: Mapping[str, float]) -> str:
    """Where the multiply-adds are done, the largest part first."""
    parts = sorted(((share, name) for name, share in linears.items() if share > 0), reverse=True)
    return ", ".join(f"{share:.1%} {ARITHMETIC[name]}" for share, name in parts) or "none"


def _sparse(got: Mapping[str, Any]) -> str:
    """How many layers have 2:4 sparse weights, if any has."""
    found = got.get("sparse")
    if found is None:
        return ""
    packed = f", {found['packed']} stored without zeros" if "packed" in found else ""
    return f"; 2:4 sparse: {found['layers']} layers, {found['share']:.1%} of the multiply-adds{packed}"


def _warn(manifest: Manifest) -> None:
    for spec in manifest.engines:
        if reason := spec.actual.get("dtype_reason"):
            note(f"note: {spec.target} computes in {spec.actual['dtype']}: {reason}")
        for key, one, several in (
            ("not_lowered", "stays canonical", "stay canonical"),
            ("not_fused", "was not fused", "were not fused"),
        ):
            found = spec.actual.get(key, {})
            for reason in dict.fromkeys(found.values()):  # one line for layers that are alike
                first, *others = [name for name, why in found.items() if why == reason]
                what = f"{first} and {len(others)} more like it {several}" if others else f"{first} {one}"
                note(f"warning: {what}, which is slower: {reason}")
