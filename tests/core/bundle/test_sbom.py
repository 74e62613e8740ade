import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from toy_model import write_bundle

from piston.core.bundle.provenance import checkpoint_hashes, stages_of

SHA = "a" * 64
EXPORT = {"stage": "export", "source": {"revision": None, "sha256": {"model.gguf": SHA}}, "tools": {"torch": "2.13.0"}}
CALIBRATE = {
    "stage": "calibrate",
    "source": {"manifest_sha256": SHA, **EXPORT},
    "tools": {"numpy": "1.0"},
    "calibration": {"data": {"files": [{"name": "rows.txt", "sha256": "b" * 64}]}},
}
BUILD = {"stage": "build", "piston": "0.1.0", "source": {"made_by": CALIBRATE}, "tools": {"onnx_ir": "1.1.0"}}


@pytest.fixture
def document(piston, tmp_path):
    """What `piston sbom` prints of a bundle made of BUILD."""

    def print_of(*words, made_by=BUILD):
        write_bundle(tmp_path / "b", made_by=made_by)
        result = piston("sbom", tmp_path / "b", *words)
        assert (result.status, result.err) == (0, "")
        return result.out

    return print_of


@pytest.mark.parametrize("made_by", [BUILD, {}, {"source": 1}, EXPORT])
def test_it_is_cyclonedx(document, made_by):
    text = document("--license", "Apache-2.0", made_by=made_by)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_model_data_tools_and_files_are_in_it(document):
    found = json.loads(document())
    names = {(part["type"], part["name"]) for part in found["components"]}
    assert {("data", "rows.txt"), ("library", "torch"), ("library", "numpy"), ("file", "ort-cpu/model.onnx")} <= names
    model = found["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "toy")
    assert model["pedigree"]["ancestors"][0]["name"] == "model.gguf"
    assert "licenses" not in model
    (ir,) = [part for part in found["components"] if part["name"] == "onnx_ir"]
    assert ir["purl"] == "pkg:pypi/onnx-ir@1.1.0"


def test_the_licence_of_the_model_is_what_the_caller_says(document):
    model = json.loads(document("--license", "Apache-2.0"))["metadata"]["component"]
    assert model["licenses"] == [{"expression": "Apache-2.0"}]


def test_the_licence_of_a_tool_is_that_of_its_installed_version(document):
    from importlib.metadata import version

    made_by = BUILD | {"tools": {"packaging": version("packaging"), "pytest": "0.0.1", "nothing": "1"}}
    parts = {part["name"]: part for part in json.loads(document(made_by=made_by))["components"]}
    assert "licenses" in parts["packaging"]
    assert "licenses" not in parts["pytest"]
    assert "licenses" not in parts["nothing"]


def test_the_same_bundle_gives_the_same_document(document):
    assert document() == document()


def test_stages_are_found_however_they_are_nested():
    assert [stage["stage"] for stage in stages_of(BUILD)] == ["build", "calibrate", "export"]
    assert checkpoint_hashes(BUILD) == {"model.gguf": SHA}


NAMES = ["source", "made_by", "sha256"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["source", "made_by", "sha256"]), inner)
    ),
)


@given(st.dictionaries(st.sampled_from(["source", "made_by", "stage"]), JSON))
def test_any_history_is_read(made_by):
    assert isinstance(checkpoint_hashes(made_by), dict)
    assert next(stages_of(made_by)) == made_by
