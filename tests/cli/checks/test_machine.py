import json

import pytest

from piston.cli.checks.machine import examine_machine, is_older, least_versions

BASE = {"numpy": "2.4.6", "jinja2": "3.1.6", "tokenizers": "0.23.3"}
LEAST = {"numpy": "2.0", "jinja2": "3.1.6", "tokenizers": "0.21", "onnxruntime": "1.31", "tensorrt-rtx-cu13": "1.7.1"}


def said(*, driver=False, **packages):
    installed = BASE | {name.replace("_", "-"): version for name, version in packages.items()}
    return {finding.subject: finding for finding in examine_machine(installed.get, LEAST, driver=driver)}


def test_a_machine_with_the_least_runs_on_the_cpu():
    found = said(onnxruntime="1.32.0")
    assert found["ort-cpu"].level == "ok"
    assert not [finding for finding in found.values() if finding.level == "wrong"]


def test_a_machine_where_nothing_can_run_is_ill():
    assert (said()["targets"].level, said()["targets"].fix) == ("wrong", "pip install 'piston[ort]'")


def test_both_packages_of_onnx_runtime_are_a_trap():
    found = said(onnxruntime="1.32.0", onnxruntime_gpu="1.32.0")["onnxruntime"]
    assert found.level == "wrong"
    assert found.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize(
    ("package", "version", "subject"), [("onnxruntime", "1.30.9", "ort-cpu"), ("numpy", "1.26.4", "numpy")]
)
def test_a_version_below_the_least_is_wrong(package, version, subject):
    found = said(**{"onnxruntime": "1.32.0", package: version})[subject]
    assert (found.level, f"{package}>={LEAST[package]}" in found.fix) == ("wrong", True)


def test_a_missing_part_of_the_runtime_is_wrong():
    found = examine_machine({"onnxruntime": "1.32.0"}.get, LEAST, driver=False)
    assert {finding.subject for finding in found if finding.level == "wrong"} == {"numpy", "jinja2", "tokenizers"}


@pytest.mark.parametrize(("driver", "level"), [(False, "missing"), (True, "ok")])
def test_a_gpu_target_needs_a_driver_to_run(driver, level):
    found = said(driver=driver, onnxruntime="1.32.0", tensorrt_rtx_cu13="1.7.1.116", cuda_bindings="13.5.0")
    assert found["tensorrt-rtx"].level == level
    assert found["cuda"].level == level


def test_a_driver_without_bindings_says_what_to_install():
    assert said(driver=True)["cuda"].fix == "pip install 'piston[cuda]'"


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [("1.9", "1.31", True), ("1.31", "1.31", False), ("2.0.1", "2.0", False), ("1.31.0+cpu2", "1.31", False)],
)
def test_versions_are_compared_by_number(version, least, older):
    assert is_older(version, least) is older


def test_the_least_versions_are_those_of_the_metadata():
    assert least_versions().keys() >= {"numpy", "jinja2", "tokenizers", "onnxruntime"}


def test_the_verb_tells_people_and_programs_the_same(piston, bundle):
    healthy, ill = piston("doctor", bundle), piston("doctor", bundle / "absent")
    assert (healthy.status, ill.status) == (0, 1)
    assert "fix: check the path" in ill.out
    found = json.loads(piston("doctor", bundle / "absent", "--json").out)
    assert (found["healthy"], found["findings"][0]["fix"]) == (False, "check the path")


def test_the_verb_examines_this_machine(piston):
    result = piston("doctor")
    assert "ort-cpu" in result.out
    assert result.status in (0, 1)
