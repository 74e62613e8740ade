import json
import sys

import pytest

from piston.bench.systems import KINDS, read_against, url_contender
from piston.core.errors import BundleError, MisuseError


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").touch()
    return tmp_path / "env"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_a_rival_lives_in_the_environment_of_its_kind(model, environment):
    found = read_against([f"genai:{model}", f"ct2:{model}"], [f"genai={environment}"], None)
    assert [(item.kind, item.path) for item in found] == [("genai", str(model)), ("ct2", str(model))]
    assert [item.python for item in found] == [str(environment / "bin/python"), sys.executable]


def test_a_bundle_is_a_rival_with_a_digest(bundle):
    (found,) = read_against([f"piston:{bundle}"], [], None)
    assert found.digest is not None
    assert found.name == "bundle"


def test_a_rival_that_is_no_bundle_is_refused(model):
    with pytest.raises(BundleError):
        read_against([f"piston:{model}"], [], None)


@pytest.mark.parametrize("text", ["genai", "vllm:models", "genai:", ":models", "models"])
def test_a_rival_of_no_known_kind_is_refused(text):
    with pytest.raises(MisuseError, match="write KIND:PATH") as told:
        read_against([text], [], None)
    assert all(kind in str(told.value) for kind in KINDS)


def test_a_server_that_runs_is_named_by_its_address():
    (found,) = read_against(["url:http://[::1]:8000/v1"], [], None, served=True)
    assert (found.kind, found.path) == ("url", "http://[::1]:8000/v1")


@pytest.mark.parametrize(
    "address", ["http://", "http:host", "ftp://host", "http://host:99999", "http://host:x", "http://[::1", "http://a b"]
)
def test_what_is_no_address_of_a_server_is_refused(address):
    with pytest.raises(MisuseError, match="is no address of a server"):
        url_contender(address)


def test_what_is_not_there_is_refused(tmp_path, model):
    with pytest.raises(MisuseError, match="does not exist"):
        read_against([f"genai:{tmp_path / 'none'}"], [], None)
    with pytest.raises(MisuseError, match="has no Python"):
        read_against([f"genai:{model}"], [f"genai={model}"], None)
    with pytest.raises(MisuseError, match="write KIND=DIR"):
        read_against([], ["genai"], None)
    with pytest.raises(MisuseError, match="Cannot read --rivals"):
        read_against([], [], tmp_path / "none.json")


def test_a_prepared_list_is_read(tmp_path, model, environment):
    python = str(environment / "bin/python")
    rivals = [{"name": "genai-int8", "kind": "genai", "path": str(model), "python": python}]
    (tmp_path / "rivals.json").write_text(json.dumps({"rivals": rivals}), encoding="utf-8")
    (found,) = read_against([], [], tmp_path / "rivals.json")
    assert (found.name, found.kind, found.path, found.python) == ("genai-int8", "genai", str(model), python)


@pytest.mark.parametrize("text", ["", "[]", '{"rivals": [{"name": "a"}]}', '{"rivals": [{"kind": "vllm"}]}', "{}"])
def test_a_list_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "rivals.json").write_text(text, encoding="utf-8")
    with pytest.raises(MisuseError, match="prepare_rivals"):
        read_against([], [], tmp_path / "rivals.json")
