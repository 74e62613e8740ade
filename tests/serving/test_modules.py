"""/v1/run over a seeded module of torch, through the whole server."""

import io
import json

import numpy as np
import pytest
import torch
from modules import SHAPES, Scorer, example

from piston.engines import build
from piston.export import export_module
from piston.runtime import load


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("module")
    export_module(Scorer(), example(), root / "model", dynamic_shapes=SHAPES)
    build(root / "model", root / "bundle")
    return root / "bundle"


@pytest.fixture
def server(live, bundle):
    with load(bundle) as model:
        yield live(None, models=[("scorer", model)])


def given(batch=3, time=9):
    rng = np.random.default_rng(5)
    return {
        "signal": rng.standard_normal((batch, 3, time)).astype(np.float32),
        "kind": rng.integers(0, 10, batch),
    }


def expected(arrays):
    with torch.no_grad():
        found = Scorer().eval()(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


def test_lists_come_back_as_lists(server):
    arrays = given()
    body = {"model": "scorer", "inputs": {name: array.tolist() for name, array in arrays.items()}}
    status, answer = server.post("/v1/run", body)
    assert status == 200
    for name, wanted in expected(arrays).items():
        np.testing.assert_allclose(answer["outputs"][name], wanted, atol=1e-5)


def test_files_come_back_as_files(server):
    arrays, data = given(4, 12), io.BytesIO()
    np.savez(data, **arrays)
    fields = [("model", b"scorer"), ("response_format", b"npz"), ('inputs"; filename="in.npz', data.getvalue())]
    parts = [b'--x\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
             for name, value in fields]  # fmt: skip
    form = b"".join(parts) + b"--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    status, answered, content = server.request("POST", "/v1/run", form, headers)
    assert (status, answered["content-type"]) == (200, "application/octet-stream")
    with np.load(io.BytesIO(content)) as found:
        for name, wanted in expected(arrays).items():
            np.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"kind": [1, 2]}, "inputs.kind", "kind is [2]; it must be [batch = 3]"),
        ({"kind": [1, 2, 2.5]}, "inputs.kind", "'kind' has values that are no int64"),
        ({"kind": None}, "inputs.kind", "'kind' is missing; the inputs are: signal, kind"),
        ({"more": [1]}, "inputs.more", "'more' is no input"),
        ({"signal": [[1], [1, 2]]}, "inputs.signal", "'signal' is no array of float32"),
    ],
)
def test_an_input_that_does_not_fit_is_named(server, change, param, message):
    inputs = {name: array.tolist() for name, array in given().items()} | change
    inputs = {name: value for name, value in inputs.items() if value is not None}
    status, answer = server.post("/v1/run", {"model": "scorer", "inputs": inputs})
    assert (status, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]


def test_numbers_at_which_the_module_fails_are_the_requests_fault_and_the_server_stays_well(server):
    beyond = given() | {"kind": np.array([1, 2, 10])}  # of a table of ten
    body = {"model": "scorer", "inputs": {name: array.tolist() for name, array in beyond.items()}}
    for _ in range(4):
        status, answer = server.post("/v1/run", body)
        assert (status, answer["error"]["param"]) == (400, "inputs")
        assert answer["error"]["message"].startswith("The module fails on these inputs: ")
    assert server.request("GET", "/health")[0] == 200


def test_a_body_beyond_the_limit_is_refused(live, bundle):
    with load(bundle) as model:
        small = live(None, models=[("scorer", model)], settings={"max_body": 200})
        inputs = {name: array.tolist() for name, array in given().items()}
        assert small.post("/v1/run", {"model": "scorer", "inputs": inputs})[0] == 413


def test_models_list_what_goes_in_and_out(server):
    (listed,) = json.loads(server.request("GET", "/v1/models")[2])["data"]
    assert listed["endpoints"] == ["/v1/run"]
    assert listed["inputs"][0] == {"name": "signal", "dtype": "float32", "shape": ["batch", 3, "time"]}
    assert [item["name"] for item in listed["outputs"]] == ["scores", "best"]
    assert "max_model_len" not in listed
