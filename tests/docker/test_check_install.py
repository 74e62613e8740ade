import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docker/check_install.py"


@pytest.fixture
def check_install():
    spec = importlib.util.spec_from_file_location("check_install", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(tmp_path):
    """A directory as `pip install --target` leaves it, with these distributions."""

    def install(*packages):
        for name, version, *metadata in packages:
            directory = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            directory.mkdir()
            lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *metadata]
            (directory / "METADATA").write_text("\n".join(lines) + "\n")
        for module in ("cli/main", "runtime/model", "runtime/backends/ort_cpu"):
            (tmp_path / f"piston/{module}.py").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"piston/{module}.py").touch()
        (tmp_path / "onnxruntime/tools").mkdir(parents=True)
        (tmp_path / "onnxruntime/__init__.py").touch()
        return tmp_path

    return install


@pytest.mark.parametrize("name", ["torch", "transformers", "onnx", "Pip"])
def test_a_runtime_with_what_it_must_not_carry_is_refused_by_name(check_install, installed, capsys, name):
    assert check_install.main([str(installed(("numpy", "2.0"), (name, "1.0")))]) == 1
    assert name in capsys.readouterr().err


def test_the_building_image_may_carry_torch(check_install, installed):
    assert check_install.main([str(installed(("torch", "2.13.0"))), "--allow-torch"]) == 0


def test_what_developers_need_is_dropped(check_install, installed):
    directory = installed(("numpy", "2.0"))
    assert check_install.main([str(directory)]) == 0
    assert not (directory / "onnxruntime/tools").exists()
    assert (directory / "onnxruntime/__init__.py").exists()


def test_a_runtime_that_cannot_be_imported_is_refused(check_install, installed):
    directory = installed(("numpy", "2.0"))
    (directory / "piston/runtime/model.py").write_text("import nowhere_to_be_found")
    with pytest.raises(Exception, match="returned non-zero"):
        check_install.main([str(directory)])


def test_the_bill_of_materials_lists_every_package(check_install, installed, tmp_path):
    directory = installed(
        ("numpy", "2.4.6", "License-Expression: BSD-3-Clause"),
        ("Jinja2", "3.1.6", "License: BSD"),
        ("flat_buffers", "25.1"),
    )
    assert check_install.main([str(directory), "--write-sbom", str(tmp_path / "sbom.json")]) == 0
    document = json.loads((tmp_path / "sbom.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert {(item["purl"], str(item.get("licenses"))) for item in document["components"]} == {
        ("pkg:pypi/numpy@2.4.6", "[{'expression': 'BSD-3-Clause'}]"),
        ("pkg:pypi/jinja2@3.1.6", "[{'license': {'name': 'BSD'}}]"),
        ("pkg:pypi/flat-buffers@25.1", "None"),
    }
