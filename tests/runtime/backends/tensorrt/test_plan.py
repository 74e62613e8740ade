import hashlib
import sys

import pytest
from fake_cuda import FakeCudaRuntime
from fake_tensorrt import FakeTensorRT
from machines import gpu
from plan_bytes import rtx_plan

from piston.core.bundle.manifest import FileRecord
from piston.core.errors import BundleCorruptError, EngineError, MissingExtraError, NoDeviceError
from piston.runtime.backends.tensorrt import plan as plan_module
from piston.runtime.backends.tensorrt.plan import Plan, read_recorded

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")


def record_of(data):
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@pytest.fixture
def module(monkeypatch):
    """The module that a plan's header names, in place of the real one."""
    module = FakeTensorRT(FakeCudaRuntime())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


@pytest.fixture
def written(tmp_path, plan_bytes):
    data, _ = plan_bytes(max_batch=4, max_length=48, chunk=16, max_logits=4)
    (tmp_path / "engine.plan").write_bytes(data)
    return tmp_path / "engine.plan"


def load(path, data=None, device=None):
    return Plan.load(
        path, record_of(path.read_bytes() if data is None else data), device or gpu(), path.parent / "home"
    )


def handed_on(module):
    return [arguments for name, arguments in module.calls if name == "deserialize_cuda_engine"]


def test_a_recorded_plan_is_handed_on_whole(module, written):
    load(written).close()
    assert handed_on(module) == [(written.stat().st_size,)]


def test_a_plan_whose_hash_is_not_in_the_manifest_never_reaches_tensorrt(module, written):
    with pytest.raises(BundleCorruptError, match=r"engine\.plan is not the plan that was recorded"):
        load(written, b"another")
    assert module.calls == []


def test_the_file_is_read_once_so_that_what_was_checked_is_what_is_run(module, written, monkeypatch):
    opened, really = [], type(written).open
    wanted = record_of(written.read_bytes())
    monkeypatch.setattr(
        type(written), "open", lambda path, *args, **how: opened.append(path) or really(path, *args, **how)
    )
    Plan.load(written, wanted, gpu(), written.parent).close()
    assert opened.count(written) == 1


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh", rtx_plan()[:70], rtx_plan() + b"more", b"\0" * 500])
def test_bytes_that_are_no_plan_never_reach_tensorrt_though_they_are_recorded(module, tmp_path, data):
    (tmp_path / "engine.plan").write_bytes(data)
    with pytest.raises(BundleCorruptError, match=r"not a TensorRT or TensorRT-RTX plan|states a size of \d+ bytes"):
        load(tmp_path / "engine.plan")
    assert module.calls == []


def test_a_plan_of_another_version_never_reaches_tensorrt(module, written):
    module.__version__ = "1.7.1.117"
    with pytest.raises(EngineError, match=r"built by tensorrt_rtx 1\.7\.1\.116, but 1\.7\.1\.117 is installed"):
        load(written)
    assert module.calls == []


def test_a_plan_for_another_gpu_never_reaches_tensorrt(module, written):
    with pytest.raises(NoDeviceError, match=r"was built for sm89; this GPU is sm90"):
        load(written, device=gpu("sm90"))
    assert module.calls == []


def test_a_compiler_that_is_not_installed_is_named_with_its_extra(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt_rtx cannot be imported .*pip install 'piston\[rtx\]'"):
        load(written)


def test_host_code_and_temporary_files_stay_forbidden(module, written, monkeypatch):
    made = []
    runtime_of = module.Runtime
    monkeypatch.setattr(module, "Runtime", lambda logger: made.append(runtime_of(logger)) or made[0])
    load(written).close()
    assert (made[0].engine_host_code_allowed, made[0].tempfile_control_flags) == (False, 0)


def test_tensorrt_gets_one_logger_for_all_plans(module, written):
    assert load(written).log is load(written).log


@pytest.mark.parametrize(("is_captured", "kind"), [(True, "EAGER"), (False, "LAZY")])
def test_kernels_of_captured_steps_are_ready_before_and_those_of_prefills_are_not_waited_for(
    module, written, monkeypatch, is_captured, kind
):
    plan, configs = load(written), []
    create = plan.engine.create_execution_context
    monkeypatch.setattr(
        plan.engine, "create_execution_context", lambda config: configs.append(config) or create(config)
    )
    plan.create_context(is_captured=is_captured)
    assert configs[0].dynamic_shapes_kernel_specialization_strategy.name == kind
    assert configs[0].cuda_graph_strategy is module.CudaGraphStrategy.DISABLED


def test_a_file_that_vanished_is_told(tmp_path):
    with pytest.raises(BundleCorruptError, match="copy the bundle whole"):
        read_recorded(tmp_path / "gone.plan", record_of(b""))


def test_nothing_in_the_runtime_allows_host_code():
    sources = [path.read_text() for path in plan_module.Path(plan_module.__file__).parent.glob("*.py")]
    assert not [text for text in sources if "engine_host_code_allowed" in text or "plugins_to_serialize" in text]
