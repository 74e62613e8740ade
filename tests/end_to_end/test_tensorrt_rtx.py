"""SmolLM2-135M for TensorRT-RTX: lowered, proved on ONNX Runtime, compiled without a GPU; w8a8, others with --slow."""

import pytest
from quantized import quantize_model_dir

from piston.core.bundle.manifest import Manifest
from piston.core.bundle.plan_header import PlanHeader
from piston.core.console import Progress
from piston.engines import build

pytestmark = pytest.mark.model
RTX = "tensorrt-rtx:sm89"
# Bytes of the plan: 106 M weights of layers in the scheme's type, 28 M of the tied head in float16, and what the
# compiler adds: 220, 207 and 142 MB were measured for w8a8, w8 and w4 in blocks of 64.
LARGEST = {"fp": 350e6, "w8a8": 240e6, "w8": 240e6, "w4": 190e6}
SHARE = {"fp": "float", "w8a8": "int8", "w8": "weights8", "w4": "weights4"}


@pytest.mark.parametrize(
    "scheme", ["w8a8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp", "w8", "w4"))]
)
def test_the_demo_model_is_proved_and_compiled(scheme, demo_model_dir, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'piston[rtx]'")
    model_dir = demo_model_dir
    if scheme != "fp":
        model_dir = quantize_model_dir(demo_model_dir, tmp_path / "model", scheme)
    build(model_dir, tmp_path / "bundle", [RTX], max_batch=2, max_length=256, progress=Progress())
    (spec,) = Manifest.read(tmp_path / "bundle").engines
    header = PlanHeader.read(tmp_path / "bundle" / spec.path)
    assert header.compute_capabilities == ("sm89",)
    float32, narrow = spec.actual["parities"]
    assert float32["relative"] < 1e-4
    assert narrow["relative"] < 1.5e-2
    assert narrow["layers"] == 30
    assert spec.actual["linears"][SHARE[scheme]] == 1
    assert header.size <= LARGEST[scheme]
