import pytest
from machines import gpu, machine_with
from plan_bytes import rtx_plan, trt_header
from toy_model import CACHE, edit_manifest, write_bundle

from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import BundleError, MissingExtraError, MisuseError, NoDeviceError
from piston.runtime.backends.cuda_driver import has_driver
from piston.runtime.backends.registry import BACKENDS, Sizes, evaluate_candidates, open_engine, select_engine
from piston.runtime.bundle import Bundle
from piston.runtime.model import load


def spec_of(target, **got):
    return EngineSpec.of(target=target, path="ort-cpu/model.onnx", cache=CACHE, requested={"max_batch": 2}, actual=got)


@pytest.fixture
def bundle_of(tmp_path):
    def bundle_of(*engines):
        specs = tuple(spec_of(engine) if isinstance(engine, str) else engine for engine in engines)
        write_bundle(tmp_path, engines=specs)
        return Bundle.open(tmp_path)

    return bundle_of


def test_the_only_engine_that_runs_is_taken(bundle_of):
    spec, reasons = select_engine(bundle_of("ort-cpu"), machine=machine_with())
    assert (spec.target, reasons) == ("ort-cpu", {})


def test_an_unknown_family_is_passed_over_with_its_name(bundle_of):
    spec, reasons = select_engine(bundle_of("quantum:q7", "ort-cpu"), machine=machine_with())
    assert spec.target == "ort-cpu"
    assert "no backend for quantum:q7" in reasons["quantum:q7"]


def test_a_target_that_is_named_is_never_replaced(bundle_of):
    with pytest.raises(BundleError, match="no backend for quantum"):
        select_engine(bundle_of("quantum", "ort-cpu"), "quantum", machine_with())


def test_a_missing_package_is_the_error_of_a_lone_engine(bundle_of):
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; pip install 'piston\[ort\]'"):
        select_engine(bundle_of("ort-cpu"), machine=machine_with(modules=()))


def test_where_nothing_runs_every_engine_says_why(bundle_of):
    with pytest.raises(BundleError, match=r"No engine of .* runs here.*ort-cpu: onnxruntime is not .*no backend for q"):
        select_engine(bundle_of("quantum", "ort-cpu"), machine=machine_with(modules=()))


def test_inspect_says_which_engine_this_machine_takes_and_why_not_another(piston, bundle):
    edit_manifest(bundle, lambda data: data["engines"].append(data["engines"][0] | {"target": "quantum"}))
    out = piston("inspect", bundle).out
    assert "  here     It is the best." in out
    assert "  here     This runtime has no backend for quantum" in out


def test_every_verdict_is_about_one_engine_the_best_family_first(bundle_of):
    targets = ["quantum", *reversed(BACKENDS)]
    verdicts = evaluate_candidates(bundle_of(*targets), machine=machine_with())
    assert [verdict.spec.target for verdict in verdicts] == [*BACKENDS, "quantum"]


def plan_spec(target="tensorrt-rtx:sm89", **got):
    return EngineSpec.of(
        target=target, path="rtx/engine.plan", cache=CACHE, requested={}, actual={"capacity": 64, "max_top_k": 64} | got
    )


@pytest.fixture
def two(tmp_path):
    """A bundle with an engine for any CPU, listed first, and one for a GPU."""

    def two(plan=None, spec=None, **header):
        (tmp_path / "rtx").mkdir()
        (tmp_path / "rtx/engine.plan").write_bytes(rtx_plan(**header) if plan is None else plan)
        write_bundle(tmp_path, engines=(spec_of("ort-cpu"), spec or plan_spec()))
        return Bundle.open(tmp_path)

    return two


def test_without_a_driver_the_cpu_engine_is_taken_and_the_reason_told(two):
    spec, reasons = select_engine(two(), machine=machine_with())
    assert spec.target == "ort-cpu"
    assert reasons["tensorrt-rtx:sm89"].startswith("There is no CUDA driver on this machine")


def test_on_its_gpu_the_plan_is_taken_before_the_cpu_engine(two):
    spec, reasons = select_engine(two(), machine=machine_with(gpu("sm89")))
    assert spec.target == "tensorrt-rtx:sm89"
    assert reasons == {"ort-cpu": "It runs here too, but tensorrt-rtx:sm89 is preferred."}


@pytest.mark.parametrize(
    ("machine", "plan", "reason"),
    [
        (machine_with(gpu("sm90")), {}, "was built for sm89; this GPU is sm90 (GPU of a test)"),
        (machine_with(gpu(), modules=("onnxruntime",)), {}, "tensorrt_rtx is not installed; pip install 'piston[rtx]'"),
        (machine_with(gpu(), version="1.6.1.1"), {}, "was built by tensorrt_rtx 1.7.1.116, but 1.6.1.1 is installed"),
        (machine_with(gpu(free=1000, total=2e6)), {}, "of the 2.0 MB of GPU of a test 0.0 MB are free"),
        (machine_with(gpu()), {"plan": b"#!/bin/sh\n" + bytes(99)}, "is not a TensorRT or TensorRT-RTX plan"),
        (machine_with(gpu()), {"spec": plan_spec(capacity="many")}, "states capacity of tensorrt-rtx:sm89 as 'many'"),
        (machine_with(gpu("sm75")), {"gpus": 0b1111110}, "was built for sm80, sm86, sm89, sm120, sm121, later"),
    ],
)
def test_what_stands_in_the_way_of_a_plan_is_said(two, machine, plan, reason):
    spec, reasons = select_engine(two(**plan), machine=machine)
    assert spec.target == "ort-cpu"
    assert reason in reasons["tensorrt-rtx:sm89"]


def test_a_plan_for_later_gpus_runs_on_a_later_one(two):
    assert select_engine(two(gpus=0b1111110), machine=machine_with(gpu("sm130")))[0].target == "tensorrt-rtx:sm89"


@pytest.mark.parametrize(("sm", "chosen"), [("sm90", "tensorrt:sm90"), ("sm89", "ort-cpu")])
def test_a_plan_of_tensorrt_is_for_the_gpus_that_the_manifest_names(two, sm, chosen):
    spec = plan_spec("tensorrt:sm90", compute_capabilities=["sm90"])
    plan = trt_header() + b"plan"
    assert select_engine(two(plan, spec), machine=machine_with(gpu(sm), version="11.4.0.106"))[0].target == chosen


@pytest.mark.parametrize(
    ("compiler", "modules", "version", "reason"),
    [
        ({"version_compatible": True}, ("tensorrt_lean",), "11.4.0.106", None),
        ({"version_compatible": True}, ("tensorrt_lean",), "11.5.0.1", None),
        ({"version_compatible": True}, ("tensorrt_lean",), "11.3.9.1", "up to its own version"),
        ({"version_compatible": True}, ("tensorrt_lean",), "12.0.0.1", "loads plans of tensorrt 12"),
        ({"version_compatible": True}, ("tensorrt_lean", "tensorrt"), "11.5.0.1", "11.5.0.1 is installed"),
        ({}, ("tensorrt_lean",), "11.4.0.106", "tensorrt is not installed; pip install 'piston[trt]'"),
        ("no table", ("tensorrt_lean",), "11.4.0.106", "tensorrt is not installed"),
    ],
)
def test_the_lean_runtime_takes_version_compatible_plans_that_are_not_younger(two, compiler, modules, version, reason):
    spec = EngineSpec.of(
        target="tensorrt:sm90",
        path="rtx/engine.plan",
        cache=CACHE,
        requested={"compiler": compiler},
        actual={"capacity": 64, "max_top_k": 64, "compute_capabilities": ["sm90"]},
    )
    machine = machine_with(gpu("sm90"), modules=("onnxruntime", *modules), version=version)
    chosen, reasons = select_engine(two(trt_header() + b"plan", spec), machine=machine)
    assert chosen.target == ("tensorrt:sm90" if reason is None else "ort-cpu")
    assert reason is None or reason in reasons["tensorrt:sm90"]


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt-rtx:sm89"])
def test_a_named_gpu_engine_fails_without_a_gpu_though_another_would_run(two, target):
    with pytest.raises(NoDeviceError, match="no CUDA driver"):
        select_engine(two(), target, machine_with())


def test_loading_here_what_needs_a_gpu_says_so(two):
    if has_driver():
        pytest.skip("there is a CUDA driver")
    with pytest.raises(NoDeviceError, match="no CUDA driver"):
        load(two().directory, target="tensorrt-rtx")


def test_threads_are_refused_where_they_mean_nothing(two):
    with pytest.raises(MisuseError, match="threads is 2, but tensorrt-rtx:sm89 runs on the GPU"):
        open_engine(two(), plan_spec(), Sizes(num_slots=1, capacity=8, threads=2))
