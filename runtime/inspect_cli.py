"""The `inspect` verb: what a model directory or bundle says of itself; loads nothing."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.runtime.backends import judge
from piston.runtime.bundle import Bundle
from piston.runtime.console import print_json, print_text
from piston.runtime.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston inspect`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a model directory or a bundle")
    parser.add_argument("--no-verify", action="store_true", help="skip the files' hashes")
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest, after checking the files against it."""
    bundle = Bundle.open(arguments.path, verify=not arguments.no_verify)
    manifest = bundle.manifest
    if arguments.json:
        print_json(dataclasses.asdict(manifest))
    else:
        here = {verdict.spec.target: verdict.reason for verdict in judge(bundle)} if manifest.engines else {}
        for line in describe(manifest, verified=not arguments.no_verify, here=here):
            print_text(line)
    return 0


def describe(manifest: Manifest, *, verified: bool, here: Mapping[str, str] | None = None) -> list[str]:
    """The manifest in a few lines for people; `here` says of each target whether this machine would use it."""
    model, cache = manifest.model, manifest.cache
    size = sum(record.size for record in manifest.files.values())
    shape = f"{model.num_layers} layers, hidden {model.hidden_size}, vocabulary {model.vocab_size:,}"
    held = f"{cache.num_kv_heads} x {cache.head_dim} {cache.dtype}, {cache.bytes_per_token / 1e3:.1f} kB a token"
    lines = [
        f"{manifest.kind} {model.name}: {model.architecture}, {shape}",
        f"precision  {model.dtype} weights, scheme {model.scheme}",
        f"positions  {model.max_positions:,}; cache {held}",
        f"files      {len(manifest.files)}, {size / 1e6:,.1f} MB, {'hashes match' if verified else 'not verified'}",
        f"chat       {'template of the checkpoint' if manifest.tokenizer.has_chat_template else 'no template'}",
    ]
    for engine in manifest.engines:
        held = f"cache {engine.cache.dtype}, {engine.cache.bytes_per_token / 1e3:.1f} kB a token"
        lines += [f"engine     {engine.target} ({engine.path}), {held}", f"  asked    {_flat(engine.asked)}"]
        lines += [f"  got      {key}: {_flat(value)}" for key, value in engine.got.items()]
        lines += [f"  here     {here[engine.target]}"] if here and engine.target in here else []
    return lines


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(item) for item in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
