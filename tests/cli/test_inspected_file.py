import json

import pytest
from toy_model import write_bundle

onnx = pytest.importorskip("onnx")


def plan(tag, version, mask=0, size=80):
    head = bytearray(80)
    head[:4], head[16:24], head[24:28], head[32] = tag, size.to_bytes(8, "little"), bytes(version), mask
    return bytes(head)


def graph(path):
    weight = onnx.helper.make_tensor("w", 3, [1000, 300], bytes(300_000), raw=True)
    info = onnx.helper.make_tensor_value_info("x", 1, ["batch", 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [info], [], [weight]), producer_name="tests")
    onnx.save(model, path)
    return path


def test_a_graph_tells_its_inputs_and_its_mix_of_weights(piston, tmp_path):
    text = piston("inspect", graph(tmp_path / "any.onnx")).out
    assert "x float32[batch, 4]" in text
    assert "1 tensors, 0.3 MB: int8 0.3 MB" in text
    assert "by tests" in text


def test_json_of_a_graph_holds_the_same(piston, tmp_path):
    found = json.loads(piston("inspect", graph(tmp_path / "any.onnx"), "--json").out)
    assert (found["kind"], found["weights"], found["num_weights"]) == ("onnx", {"int8": 300_000}, 1)
    assert found["inputs"] == [{"name": "x", "type": "float32", "shape": ["batch", 4]}]


def test_missing_external_weights_are_told(piston, tmp_path):
    path = graph(tmp_path / "any.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="any.data", size_threshold=0)
    (tmp_path / "any.data").unlink()
    assert "any.data, WHICH IS MISSING" in piston("inspect", path).out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (plan(b"vtrt", (1, 7, 1, 116), mask=0b1010), "tensorrt_rtx 1.7.1.116, for sm80, sm89, 0.0 MB\n"),
        (plan(b"ftrt", (11, 4, 0, 2)), "tensorrt 11.4.0.2, for the GPU it was built on"),
        (plan(b"vtrt", (1, 7, 1, 116), mask=1, size=999), "TRUNCATED: 999 bytes were written"),
    ],
)
def test_a_plan_tells_compiler_version_and_gpus(piston, tmp_path, data, said):
    (tmp_path / "any").write_bytes(data)
    assert said in piston("inspect", tmp_path / "any").out
    assert json.loads(piston("inspect", tmp_path / "any", "--json").out)["kind"] == "plan"


@pytest.mark.parametrize("content", [b"", b"vtrt", b"something else"])
def test_a_file_that_is_neither_is_a_failure(refused, tmp_path, content):
    (tmp_path / "any").write_bytes(content)
    assert refused("inspect", tmp_path / "any")[0] == 1


def test_a_gguf_checkpoint_is_named_with_the_command_that_knows_it(refused, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    assert "is a GGUF checkpoint" in refused("inspect", tmp_path / "x.gguf")[1]


def test_nothing_at_a_path_is_a_failure(refused, tmp_path):
    assert "does not exist" in refused("inspect", tmp_path / "absent")[1]


def test_a_bundle_tells_the_mix_of_each_engine(piston, tmp_path):
    (tmp_path / "ort-cpu").mkdir()
    graph(tmp_path / "ort-cpu/model.onnx")
    write_bundle(tmp_path)
    assert "int8 0.3 MB" in piston("inspect", tmp_path).out


def test_a_manifest_stands_for_its_directory(piston, bundle):
    assert piston("inspect", bundle / "manifest.json").out == piston("inspect", bundle).out
