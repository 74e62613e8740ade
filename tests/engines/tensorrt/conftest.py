"""Toys lowered for TensorRT once per session, in any scheme, with what the parity check compares them to."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_bytes import rtx_plan

from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec
from piston.engines.equivalence.answers import reference_of
from piston.engines.tensorrt.build import LoweredFile, write_lowered
from piston.engines.tensorrt.equivalence.lockstep import write_exposed

MAX_LENGTH, MAX_BATCH = 50, 3


@dataclasses.dataclass(frozen=True)
class LoweredToy:
    """A lowered toy, its manifest, and the canonical graph in float32 that gives out what becomes codes."""

    file: LoweredFile
    model: Manifest
    reference: Path


@pytest.fixture(scope="session")
def lowered_toy(toy, tmp_path_factory):
    """lowered_toy(model_type, scheme="fp", dtype="float16") -> LoweredToy."""
    made = {}

    def lower(model_type, scheme="fp", dtype="float16"):
        key = (model_type, scheme, dtype)
        if key not in made:
            made[key] = _lowered(toy(model_type), scheme, dtype, tmp_path_factory.mktemp("-".join(key)))
        return made[key]

    return lower


@pytest.fixture
def fake_compiler(monkeypatch):
    """A compiler that compiles nothing, for tests of what is compared before."""
    from piston.engines.tensorrt import build as builder
    from piston.engines.tensorrt.compile import Compiled

    def compile_plan(path, goal, target, profiles, options, progress):
        goal.write_bytes(rtx_plan(path.read_bytes()))
        return Compiled(compiler_version="1.7.1.116", layers=1, plan_bytes=goal.stat().st_size)

    monkeypatch.setattr(builder, "compile_plan", compile_plan)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1.116"))


def _lowered(canonical, scheme, dtype, root):
    from quantized import quantize

    path = canonical.path
    if scheme != "fp":
        path = quantize(canonical.path, root / "model", canonical.cache, scheme)
    spec = ModelSpec(
        name="toy", architecture="Toy", num_layers=2, hidden_size=64, vocab_size=131, max_positions=96,
        dtype="float32", scheme=scheme.partition(" ")[0],
    )  # fmt: skip
    model = Manifest.of_decoder(kind="model", model=spec, cache=canonical.cache, tokenizer=TokenizerSpec(), files={})
    asked = {"dtype": dtype, "max_batch": MAX_BATCH, "max_length": MAX_LENGTH}
    file = write_lowered(path, model, root, asked)
    with reference_of(path, model, root) as reference:
        exposed = write_exposed(reference, root / "exposed")
    return LoweredToy(file, model, exposed)
