import json
from types import SimpleNamespace

import pytest
from fake_cuda import FakeCudaRuntime
from fake_tensorrt import FakeTensorRT, IRuntimeConfig

from piston.runtime.backends.tensorrt import kernel_cache
from piston.runtime.backends.tensorrt.kernel_cache import KernelCache


@pytest.fixture
def module():
    return FakeTensorRT(FakeCudaRuntime())


def attached(module, directory, plan="p" * 64):
    cache = KernelCache(directory, "engine.plan", plan)
    cache.attach(IRuntimeConfig(module))
    return cache


def loaded(module):
    return [arguments[0] for name, arguments in module.calls if name == "IRuntimeCache.deserialize"]


def test_kernels_are_kept_and_given_back_at_the_next_load(module, tmp_path):
    attached(module, tmp_path).save()
    attached(module, tmp_path)
    assert loaded(module) == [module.kernels]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.plan.kernels", "engine.plan.kernels.json"]


def test_the_same_kernels_are_not_written_again(module, tmp_path):
    attached(module, tmp_path).save()
    before = (tmp_path / "engine.plan.kernels").stat().st_ino
    attached(module, tmp_path).save()
    assert (tmp_path / "engine.plan.kernels").stat().st_ino == before


def test_new_kernels_replace_the_old(module, tmp_path):
    attached(module, tmp_path).save()
    module.kernels = b"more kernels"
    attached(module, tmp_path).save()
    attached(module, tmp_path)
    assert loaded(module)[-1] == b"more kernels"


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"kernels of somebody else"),
        lambda path: path.with_suffix(".kernels.json").unlink(),
        lambda path: path.with_suffix(".kernels.json").write_text("{"),
        lambda path: path.with_suffix(".kernels.json").write_text("[" * 100_000),
        lambda path: path.with_suffix(".kernels.json").write_text(json.dumps({"sha256": "0", "plan_sha256": "p" * 64})),
    ],
)
def test_kernels_that_are_not_as_recorded_never_reach_tensorrt(module, tmp_path, harm):
    attached(module, tmp_path).save()
    harm(tmp_path / "engine.plan.kernels")
    attached(module, tmp_path)
    assert loaded(module) == []


def test_kernels_of_another_plan_never_reach_tensorrt(module, tmp_path):
    attached(module, tmp_path).save()
    attached(module, tmp_path, plan="q" * 64)
    assert loaded(module) == []


def test_kernels_lie_beside_the_plan_or_where_that_cannot_be_written_in_the_cache_directory(tmp_path, monkeypatch):
    plan, home = tmp_path / "bundle/engine.plan", tmp_path / "home"
    monkeypatch.setattr(kernel_cache, "os", SimpleNamespace(access=lambda *_: True, W_OK=2))
    assert KernelCache.beside(plan, "abc", home).path == tmp_path / "bundle/engine.plan.kernels"
    monkeypatch.setattr(kernel_cache, "os", SimpleNamespace(access=lambda *_: False, W_OK=2))
    assert KernelCache.beside(plan, "abc", home).path == home / "abc.kernels"


def test_what_cannot_be_kept_is_no_error(module, tmp_path):
    (tmp_path / "file").write_text("in the way")
    attached(module, tmp_path / "file/directory").save()


def test_a_write_that_fails_halfway_leaves_the_old_kernels(module, tmp_path, monkeypatch):
    attached(module, tmp_path).save()
    old, module.kernels = module.kernels, b"new"

    def full(self, goal):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "replace", full)
    attached(module, tmp_path).save()
    monkeypatch.undo()
    attached(module, tmp_path)
    assert loaded(module)[-1] == old
    assert len(list(tmp_path.iterdir())) == 2
