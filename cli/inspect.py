"""The `inspect` verb: describes a bundle, a model directory, an ONNX file or a plan; loads nothing."""

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.cli.inspected_file import inspect_file, plan_line, weights_line
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import MODULE, CacheSpec
from piston.core.bundle.manifest import FILE_NAME, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.bundle.plan_header import PlanHeader
from piston.core.console import print_json, print_text
from piston.core.errors import BundleCorruptError
from piston.runtime.backends.registry import evaluate_candidates
from piston.runtime.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston inspect`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a bundle, model directory, ONNX file or plan")
    parser.add_argument("--no-verify", action="store_true", help="do not check the files' hashes")
    parser.add_argument(
        "--json", action="store_true", help="print the manifest, or what the file contains, as one JSON object"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest after checking the files against it, or describe a single file."""
    path: Path = arguments.path
    if not path.is_dir() and path.name != FILE_NAME:
        facts, lines = inspect_file(path)
        if arguments.json:
            print_json(facts)
        for line in [] if arguments.json else lines:
            print_text(line)
        return 0
    directory = path if path.is_dir() else path.parent
    bundle = Bundle.open(directory, verify=not arguments.no_verify)
    manifest = bundle.manifest
    if arguments.json:
        print_json(dataclasses.asdict(manifest))
    else:
        here = (
            {verdict.spec.target: verdict.reason for verdict in evaluate_candidates(bundle)} if manifest.engines else {}
        )
        for line in describe(manifest, verified=not arguments.no_verify, here=here, files=_files(bundle)):
            print_text(line)
    return 0


def describe(
    manifest: Manifest,
    *,
    verified: bool,
    here: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> list[str]:
    """The manifest as a few lines of text.

    `here` says for each target whether this machine would use it, `files` describes the file at a path.
    """
    model, cache = manifest.model, manifest.cache
    size = sum(record.size for record in manifest.files.values())
    is_module = MODULE in manifest.graphs  # of which layers and positions are not known
    shape = f"{model.num_layers} layers, hidden {model.hidden_size}, vocabulary {model.vocab_size:,}"
    held = f"{_heads(cache)} {cache.dtype}, {cache.bytes_per_token / 1e3:.1f} kB a token" if cache.states else "none"
    lines = [
        f"{manifest.kind} {model.name}: {model.architecture}{'' if is_module else f', {shape}'}",
        f"task       {manifest.task}; graphs {', '.join(manifest.graphs)}",
        f"precision  {model.dtype} weights, scheme {model.scheme}",
        *([] if is_module else [f"positions  {model.max_positions:,}; cache {held}"]),
        f"files      {len(manifest.files)}, {size / 1e6:,.1f} MB, {'hashes match' if verified else 'not verified'}",
        f"chat       {'template of the checkpoint' if manifest.tokenizer.has_chat_template else 'no template'}",
    ]
    if sparse := manifest.made_by.get("calibration", {}).get("sparse"):
        lines.append(f"sparsity   2:4 in {len(sparse)} linears")
    lines += [(files or {})[name] for name in [GRAPH] if manifest.kind == "model" and name in (files or {})]
    for engine in manifest.engines:
        held = "no cache"
        if engine.cache.states:
            held = f"cache {engine.cache.dtype}, {engine.cache.bytes_per_token / 1e3:.1f} kB a token"
        lines += [f"engine     {engine.target} ({engine.path}), {held}", f"  requested {_flat(engine.requested)}"]
        lines += [f"  actual   {key}: {_flat(value)}" for key, value in engine.actual.items()]
        lines += [f"  {files[engine.path]}"] if files and engine.path in files else []
        lines += [f"  here     {here[engine.target]}"] if here and engine.target in here else []
    return lines


def _files(bundle: Bundle) -> dict[str, str]:
    """One line about each readable graph or plan, by its path."""
    found: dict[str, str] = {}
    for name in [spec.path for spec in bundle.manifest.engines] or [GRAPH]:
        with contextlib.suppress(BundleCorruptError):  # the hashes find damaged files; other files get no line
            path = bundle.directory / name
            is_graph = path.suffix == ".onnx"
            found[name] = weights_line(OnnxHeader.read(path)) if is_graph else plan_line(PlanHeader.read(path), path)
    return found


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(item) for item in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _heads(cache: CacheSpec) -> str:
    """`kv_heads x head_dim` of the layers, in their order."""
    return ", ".join(dict.fromkeys(f"{state.shape[1]} x {state.shape[3]}" for state in cache.states))
