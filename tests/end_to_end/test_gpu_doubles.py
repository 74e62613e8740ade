"""SmolLM2-135M in float16 through the TensorRT engine: the file the compiler gets, on doubles of CUDA and TensorRT."""

import sys

import pytest

from piston.cli.main import main
from piston.runtime import SamplingParams, load
from piston.runtime.backends import cuda_driver as cuda
from piston.runtime.backends import registry as backends

pytestmark = [pytest.mark.model, pytest.mark.slow]
TARGET = "tensorrt-rtx:sm89"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def machine(monkeypatch):
    import gpu_doubles
    from machines import gpu, machine_with

    from piston.engines.tensorrt import build

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", gpu_doubles.MODULE)
    monkeypatch.setattr(cuda.Cuda, "open", classmethod(lambda cls, index=0: cls.of(gpu_doubles.RUNTIME, index)))
    monkeypatch.setattr(backends, "Machine", lambda: machine_with(gpu("sm89")))
    monkeypatch.setattr(build, "compile_plan", gpu_doubles.compile_double)
    return gpu_doubles.RUNTIME


def test_the_capital_of_france_is_paris_on_a_gpu_too(demo_model_dir, tmp_path, machine):
    sizes = ["--max-batch", "2", "--max-length", "96", "--quiet", "--no-cache"]
    targets = ["--target", "ort-cpu", "--target", TARGET]
    assert main(["build", str(demo_model_dir), "-o", str(tmp_path / "bundle"), *targets, *sizes]) == 0
    answers = {}
    for target in ("ort-cpu", None):
        with load(tmp_path / "bundle", target=target) as model:
            answers[type(model.engine).__name__] = model.chat(MESSAGES, SamplingParams(max_tokens=12))
    assert answers["TensorRTEngine"].text == "The capital of France is Paris."
    assert answers["TensorRTEngine"].token_ids == answers["OrtEngine"].token_ids
    assert "cudaGraphLaunch" in machine.names()
    assert machine.leaks() == 0
