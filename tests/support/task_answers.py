"""What a bundle answers in Python, by command and over HTTP, and whether a compiler built its plans."""

import contextlib
import json

import pytest
from live_server import serving
from own_kernels import need_kernels
from task_matrix import AUDIO, PLAN

from piston.core.bundle.manifest import Manifest
from piston.core.bundle.plan_header import PlanHeader
from piston.runtime import kernels, load
from piston.serving.settings import Settings


@contextlib.contextmanager
def opened(toys, row, name, scheme, target):
    """(the bundle, what `load` makes of it) of a toy on a target; its manifest says what the row does."""
    if target == kernels.TARGET:
        need_kernels()
    bundle = toys.everywhere(name, scheme)
    manifest = Manifest.read(bundle)
    assert (manifest.task, manifest.model.scheme) == (row.task, scheme)
    for spec in manifest.engines:
        check_linears(spec, scheme)
    with load(bundle, target=target) as model:
        assert model.target == target
        assert callable(getattr(model, row.method))
        yield bundle, model


def check_linears(spec, scheme):
    """Nearly all linears of each graph of an engine have the arithmetic of the scheme."""
    for part in (spec.actual, spec.actual.get("encoder", spec.actual)):
        assert part["linears"]["int8" if scheme == "w8a8" else "float"] > 0.9


def over_http(model, row, sound=None):
    """The answers to what a row asks, each as its JSON."""
    with serving([("toy", model)], Settings()) as server:
        for _, body in row.asks:
            fields = {"model": "toy", **body}
            status, answer = server.post(row.path, fields) if sound is None else server.form(row.path, fields, sound)
            assert status == 200, answer
            yield answer


def by_command(piston, bundle, row, target, sound=None):
    """What `piston run --json` prints, each as its JSON."""
    for words, _ in row.asks:
        given = [sound if word == AUDIO else word for word in words]
        result = piston("run", bundle, *given, "--target", target, "--json", "--quiet")
        assert (result.status, result.err) == (0, "")
        yield json.loads(result.out)


def check_plans(toys, model_dir, scheme):
    """The compiler of TensorRT-RTX builds a plan of each graph of a model directory."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    bundle = toys.built(model_dir, (PLAN,), max_batch=2)
    (spec,) = Manifest.read(bundle).engines
    assert set(spec.files) == set(Manifest.read(bundle).graphs)
    for path in spec.files.values():
        assert PlanHeader.read(bundle / path).compute_capabilities == ("sm89",)
    check_linears(spec, scheme)
    for part in (spec.actual, spec.actual.get("encoder", spec.actual)):
        assert [parity["dtype"] for parity in part["parities"]] == ["float32", "float16"]
