import shutil

import pytest
from toy_model import write_bundle

from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import BundleCorruptError, DeviceMemoryError
from piston.runtime.backends import registry as backends
from piston.runtime.model import load
from piston.runtime.sampling.params import SamplingParams

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

PROMPTS = [[17, 3, 90], [44, 5, 5, 128, 61], [9]]
WARM = SamplingParams(max_tokens=12, temperature=0.8, top_k=30, top_p=0.95, seed=5)


@pytest.fixture
def both(tmp_path, toy_llama, plan_bytes):
    """A bundle of the toy with an engine for any CPU and one for an sm89."""
    (tmp_path / "ort-cpu").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(toy_llama.path.with_name(name), tmp_path / "ort-cpu" / name)
    data, sizes = plan_bytes(max_batch=4, max_length=48, chunk=16, max_logits=4)
    (tmp_path / "rtx").mkdir()
    (tmp_path / "rtx/engine.plan").write_bytes(data)
    asked, got = {"max_batch": 4, "max_length": 48}, {"capacity": sizes.capacity, "max_top_k": 64, "max_positions": 48}
    engines = tuple(
        EngineSpec.of(target=target, path=path, cache=toy_llama.spec, requested=asked, actual=got)
        for target, path in (("ort-cpu", "ort-cpu/model.onnx"), ("tensorrt-rtx:sm89", "rtx/engine.plan"))
    )
    write_bundle(tmp_path, engines=engines)
    return tmp_path


@pytest.mark.parametrize("sampling", [SamplingParams(max_tokens=12), WARM])
def test_a_bundle_answers_alike_on_the_gpu_and_on_the_cpu(both, machine, sampling):
    with load(both, target="ort-cpu") as model:
        expected = model.generate(PROMPTS, sampling)
    with load(both) as model:
        assert type(model.engine).__name__ == "TensorRTEngine"
        found = model.generate(PROMPTS, sampling)
    assert [item.token_ids for item in found] == [item.token_ids for item in expected]
    assert [item.text for item in found] == [item.text for item in expected]
    assert machine.runtime.leaks() == 0
    assert "cudaGraphLaunch" in machine.runtime.names()


def test_kernels_are_kept_beside_the_plan_and_do_not_harm_the_hashes(both, machine):
    for _ in range(2):
        with load(both) as model:
            model.generate([5, 6], SamplingParams(max_tokens=3))
    kept = [arguments[0] for name, arguments in machine.module.calls if name == "IRuntimeCache.deserialize"]
    assert kept == [machine.module.kernels]


def test_a_plan_that_was_exchanged_between_the_check_and_the_load_is_not_run(both, machine, monkeypatch):
    opener = backends.open_engine
    spec, _ = backends.select_engine(bundle := backends.Bundle.open(both))
    (both / "rtx/engine.plan").write_bytes((both / "rtx/engine.plan").read_bytes() + b"payload")
    with pytest.raises(BundleCorruptError, match="is not the plan that was recorded"):
        opener(bundle, spec, backends.Sizes(num_slots=1, capacity=48))
    assert machine.module.calls == []


def test_a_gpu_that_is_full_is_told_and_the_cpu_engine_can_be_named(both, machine):
    machine.runtime.total = 50_000
    with pytest.raises(DeviceMemoryError, match=r"MB are free; load with a smaller max_batch"):
        load(both, target="tensorrt-rtx")
    with load(both, target="ort-cpu") as model:
        assert model.generate([5, 6], SamplingParams(max_tokens=3)).token_ids
        assert model.remarks == ()


def test_without_a_target_the_cpu_engine_takes_the_place_of_one_that_cannot_be_opened(both, machine):
    machine.module.refuse["create_execution_context"] = "no such kernel"
    with load(both) as model, load(both, target="ort-cpu") as other:
        assert model.target == other.target == "ort-cpu"
        (remark,) = model.remarks
        assert remark.startswith("tensorrt-rtx:sm89 could not be opened (TensorRT failed while creating a context")
        assert remark.endswith("no such kernel); ort-cpu is used instead.")
        sampling = SamplingParams(max_tokens=5)
        assert model.generate([5, 6], sampling).token_ids == other.generate([5, 6], sampling).token_ids
    assert machine.runtime.leaks() == 0


def test_fewer_rows_and_positions_than_built_for_can_be_had(both, machine):
    with load(both, max_batch=2, max_length=20) as model:
        assert (model.engine.cache.num_slots, model.engine.cache.capacity) == (2, 20)
        assert len(model.generate([PROMPTS[0]] * 3, SamplingParams(max_tokens=17))) == 3
