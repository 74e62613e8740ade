import pytest
from machines import machine_with
from toy_model import CACHE, edit_manifest, write_bundle

from piston.runtime.backends import BACKENDS, choose, judge
from piston.runtime.bundle import Bundle
from piston.runtime.errors import BundleError, MissingExtraError
from piston.runtime.manifest import EngineSpec


def spec_of(target, **got):
    return EngineSpec(target=target, path="ort-cpu/model.onnx", cache=CACHE, asked={"max_batch": 2}, got=got)


@pytest.fixture
def bundle_of(tmp_path):
    def bundle_of(*engines):
        specs = tuple(spec_of(engine) if isinstance(engine, str) else engine for engine in engines)
        write_bundle(tmp_path, engines=specs)
        return Bundle.open(tmp_path)

    return bundle_of


def test_the_only_engine_that_runs_is_taken(bundle_of):
    spec, reasons = choose(bundle_of("ort-cpu"), machine=machine_with())
    assert (spec.target, reasons) == ("ort-cpu", {})


def test_an_unknown_family_is_passed_over_with_its_name(bundle_of):
    spec, reasons = choose(bundle_of("quantum:q7", "ort-cpu"), machine=machine_with())
    assert spec.target == "ort-cpu"
    assert "no backend for quantum:q7" in reasons["quantum:q7"]


def test_a_target_that_is_named_is_never_replaced(bundle_of):
    with pytest.raises(BundleError, match="no backend for quantum"):
        choose(bundle_of("quantum", "ort-cpu"), "quantum", machine_with())


def test_a_missing_package_is_the_error_of_a_lone_engine(bundle_of):
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; pip install 'piston\[ort\]'"):
        choose(bundle_of("ort-cpu"), machine=machine_with(modules=()))


def test_where_nothing_runs_every_engine_says_why(bundle_of):
    with pytest.raises(BundleError, match=r"No engine of .* runs here.*ort-cpu: onnxruntime is not .*no backend for q"):
        choose(bundle_of("quantum", "ort-cpu"), machine=machine_with(modules=()))


def test_inspect_says_which_engine_this_machine_takes_and_why_not_another(piston, bundle):
    edit_manifest(bundle, lambda data: data["engines"].append(data["engines"][0] | {"target": "quantum"}))
    out = piston("inspect", bundle).out
    assert "  here     It is the best." in out
    assert "  here     This runtime has no backend for quantum" in out


def test_every_verdict_is_about_one_engine_the_best_family_first(bundle_of):
    targets = ["quantum", *reversed(BACKENDS)]
    verdicts = judge(bundle_of(*targets), machine=machine_with())
    assert [verdict.spec.target for verdict in verdicts] == [*BACKENDS, "quantum"]
