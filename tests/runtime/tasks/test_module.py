import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from modules import SHAPES, Scorer, example
from toy_model import edit_manifest

from piston.cli.main import main
from piston.core.bundle.interface import GraphInterface, TensorSpec
from piston.core.bundle.manifest import sha256_of
from piston.core.errors import BundleCorruptError, MisuseError, ParityError
from piston.engines import build
from piston.export import export_module
from piston.runtime import load
from piston.runtime.tasks.module import checked_feeds

SCHEMAS = Path(__file__).parents[3] / "docs/schemas"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("module")
    export_module(Scorer(), example(), root / "model", dynamic_shapes=SHAPES)
    build(root / "model", root / "bundle")
    return root / "bundle"


def inputs(batch=4, time=11):
    rng = np.random.default_rng(3)
    return {
        "signal": rng.standard_normal((batch, 3, time)).astype(np.float32),
        "kind": rng.integers(0, 10, batch),
    }


def test_outputs_are_those_of_the_module_at_any_size(bundle):
    with load(bundle) as model:
        for batch, time in ((1, 3), (4, 11), (9, 50)):
            given = inputs(batch, time)
            with torch.no_grad():
                expected = Scorer().eval()(**{name: torch.from_numpy(array) for name, array in given.items()})
            found = model.run(given)
            np.testing.assert_allclose(found["scores"], expected["scores"].numpy(), atol=1e-5)
            np.testing.assert_array_equal(found["best"], expected["best"].numpy())


def test_a_number_is_an_input_without_axes():
    interface = GraphInterface(inputs=(TensorSpec(name="scale", dtype="float32", shape=(), role="value"),), outputs=())
    for given in (2.5, np.array(2.5, np.float32)):
        found = checked_feeds(interface, {"scale": given})
        assert found["scale"].shape == ()
        assert found["scale"] == 2.5


def test_the_bundle_gives_the_answers_it_carries(bundle):
    with load(bundle) as model:
        assert len(model.examples) >= 3
        for item in model.examples:
            found = model.run(item.inputs)
            assert max(item.difference(name, array) for name, array in found.items()) < 1e-5


def test_lists_become_arrays_of_the_inputs_type(bundle):
    given = inputs(batch=2)
    with load(bundle) as model:
        found = model.run({"signal": given["signal"].tolist(), "kind": given["kind"].tolist()})
        np.testing.assert_array_equal(found["scores"], model.run(given)["scores"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": None}, "'kind' is missing; the inputs are: signal, kind"),
        ({"more": np.zeros(1)}, "'more' is no input"),
        ({"kind": np.zeros(4, np.int32)}, "'kind' is int32; it must be int64"),
        ({"kind": np.zeros(3, np.int64)}, r"kind is \[3\]; it must be \[batch = 4\]"),
        ({"signal": np.zeros((4, 2, 5), np.float32)}, r"it must be \[batch = 4, 3, time = 5\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(bundle, change, reason):
    given = {name: array for name, array in (inputs() | change).items() if array is not None}
    with load(bundle) as model, pytest.raises(MisuseError, match=reason):
        model.run(given)


def test_lengths_and_batches_of_texts_are_refused(bundle):
    with pytest.raises(MisuseError, match="its inputs say"):
        load(bundle, max_length=5)


@pytest.mark.parametrize("name", ["examples.npz", "ort-cpu/model.onnx"])
def test_a_damaged_bundle_is_refused_by_the_name_of_the_file(bundle, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / name
    path.write_bytes(b"x" + path.read_bytes()[1:])  # no graph that ONNX Runtime takes
    with pytest.raises(BundleCorruptError, match=name):
        load(copy)


def test_a_lowered_graph_that_differs_is_not_built(bundle, monkeypatch, tmp_path):
    import onnx_ir as ir

    from piston.engines.ort import module

    def broken(model: ir.Model):
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Abs"

    monkeypatch.setattr(module, "lower_encoder", broken)
    with pytest.raises(ParityError, match="scores"):
        build(bundle.parent / "model", tmp_path / "bundle")


def test_the_command_reads_and_writes_arrays(bundle, tmp_path, capsys):
    given = inputs()
    np.savez(tmp_path / "in.npz", **given)
    words = ["run", str(bundle), "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz"), "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    with load(bundle) as model, np.load(tmp_path / "out.npz") as written:
        for name, array in model.run(given).items():
            np.testing.assert_array_equal(written[name], array)
            np.testing.assert_allclose(printed[name], array)


def test_the_commands_build_and_describe_a_module(bundle, tmp_path, capsys):
    words = ["build", str(bundle.parent / "model"), "-o", str(tmp_path / "bundle"), "--quiet"]
    assert main([*words, "--max-batch", "2"]) == 2
    assert "--max-batch is for models of text" in capsys.readouterr().err
    assert main(words) == 0
    assert "canonical graph's over" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "bundle")]) == 0
    printed = capsys.readouterr().out
    assert "task       module; graphs module" in printed
    assert "0 layers" not in printed


def test_a_file_that_is_no_npz_is_refused(bundle, tmp_path, capsys):
    (tmp_path / "in.npz").write_bytes(b"no archive")
    assert main(["run", str(bundle), "--input", str(tmp_path / "in.npz")]) == 2
    assert "is no .npz file" in capsys.readouterr().err


def test_doctor_finds_nothing_wrong(bundle, capsys):
    assert main(["doctor", str(bundle)]) == 0
    assert "wrong" not in capsys.readouterr().out


def test_verify_compares_the_examples_with_what_the_build_recorded(bundle, tmp_path, capsys):
    assert main(["verify", str(bundle), "--quiet"]) == 0
    assert "answers as built; outputs for 4 examples were compared" in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "verify.json"
    data = json.loads(path.read_text())
    data["engines"]["ort-cpu"]["examples"][1]["values"]["scores"][0] += 0.1
    path.write_text(json.dumps(data))
    record = {"sha256": sha256_of(path), "size": path.stat().st_size}
    edit_manifest(copy, lambda manifest: manifest["files"].__setitem__("verify.json", record))
    assert main(["verify", str(copy), "--quiet"]) == 1
    assert "the engine differs on 'example 1, output scores'" in capsys.readouterr().err


def test_bench_measures_runs_of_the_example_or_of_a_file(bundle, tmp_path, capsys):
    words = ["bench", str(bundle), "--repeats", "1", "--warmup", "0", "--threads", "1", "--quiet", "--json"]
    assert main([*words, "--require", "latency<=10s"]) == 0
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, json.loads((SCHEMAS / "bench-tasks.json").read_text(encoding="utf-8")))
    assert printed["shapes"] == {"signal": [2, 3, 7], "kind": [2]}
    assert printed["values"]["runs_per_second"] > 0
    np.savez(tmp_path / "in.npz", **inputs(5, 9))
    assert main([*words, "--prompts", str(tmp_path / "in.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["shapes"]["signal"] == [5, 3, 9]
    assert main([*words, "--alpha", "0.5"]) == 2
    assert "--alpha is for language models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ([1.5, 2], "has values that are no int64"),
        ([[1], [2, 3]], "lists must hold numbers and be of one length"),
        (["a", "b"], "is no array of int64"),
        ([1e300, 2], "has values that are no int64"),
    ],
)
def test_lists_of_other_things_than_the_inputs_numbers_are_refused(bundle, kind, reason):
    with load(bundle) as model, pytest.raises(MisuseError, match=reason):
        model.run({"signal": inputs(2)["signal"], "kind": kind})


class Masked(torch.nn.Module):
    """Minus infinity where nothing may be chosen."""

    def forward(self, scores, allowed):
        return scores.masked_fill(allowed == 0, float("-inf")) * 2


def test_infinite_outputs_are_exported_built_and_verified_and_a_lost_one_is_found(tmp_path, capsys):
    given = {"scores": torch.tensor([[0.5, -1.0, 2.0]]), "allowed": torch.tensor([[1, 0, 1]])}
    export_module(Masked(), given, tmp_path / "model")
    build(tmp_path / "model", tmp_path / "bundle")
    with load(tmp_path / "bundle") as model:
        found = model.run({name: tensor.numpy() for name, tensor in given.items()})
        np.testing.assert_array_equal(found["output"], [[1.0, -np.inf, 4.0]])
    assert main(["verify", str(tmp_path / "bundle"), "--quiet"]) == 0
    path = tmp_path / "bundle/verify.json"
    golden = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    values = golden["engines"]["ort-cpu"]["examples"][0]["values"]["output"]
    assert values == [1.0, "-Infinity", 4.0]
    values[1] = -3.0
    path.write_text(json.dumps(golden))
    record = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    edit_manifest(tmp_path / "bundle", lambda manifest: manifest["files"].__setitem__("verify.json", record))
    assert main(["verify", str(tmp_path / "bundle"), "--quiet"]) == 1
    assert "NaN or infinite where the recorded one is not" in capsys.readouterr().err
