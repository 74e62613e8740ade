"""What calibrate does with data, models and settings that are wrong, or odd and right: through the command."""

import dataclasses
import json
import shutil
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from piston.calibration.float_graph import ModelGraph
from piston.calibration.schemes.w8a8 import observe
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest, record_files
from piston.core.console import Progress

SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions by night"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(SENTENCE.split(), 12)) + "." for _ in range(200)))
    return path


def calibrated(model_dir, out, data, *words):
    command = ["calibrate", str(model_dir), "-o", str(out), "--scheme", "w8a8", "--quiet", "--data", str(data)]
    return main([*command, "--samples", "4", "--seq-len", "24", *words])


def changed(model_dir, out, name, change):
    """A copy of the model directory with one weight changed."""
    shutil.copytree(model_dir, out)
    model = ir.load(model_dir / "model.onnx")
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    change(array)
    value.const_value = ir.tensor(array, name=name)
    ir.save(model, out / "model.onnx", external_data="model.onnx.data")
    dataclasses.replace(Manifest.read(model_dir), files=record_files(out)).write(out)
    return out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt: No such file"),
        ("empty.txt", b"", "holds no data"),
        ("blank.txt", b" \n\f \n", "holds no data"),
        ("latin.txt", "Gr\u00fc\u00dfe ".encode("latin-1") * 500, "is not UTF-8"),
        ("other.jsonl", json.dumps({"body": SENTENCE}).encode(), "line 1, has no field 'messages' or 'text'"),
        ("broken.jsonl", b'{"text": ', "line 1, is not JSON"),
        ("short.txt", SENTENCE.encode(), "Add data, or ask for fewer or shorter rows"),
        ("noise.txt", bytes(np.random.default_rng(0).integers(33, 127, 9000, np.uint8)), "looks like noise"),
        ("floats.npy", b"\x93NUMPY", "is not a .npy file"),
    ],
)
def test_data_that_cannot_be_used_is_misuse_in_one_line(model_dir, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert calibrated(model_dir, tmp_path / "out", tmp_path / name) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--data", "--check-data"])
def test_rows_to_check_on_are_read_as_strictly(model_dir, text, tmp_path, capsys, option):
    words = [] if option == "--data" else ["--check-data", str(tmp_path / "nothing.txt")]
    data = tmp_path / "nothing.txt" if option == "--data" else text
    assert calibrated(model_dir, tmp_path / "out", data, *words) == 2
    assert "nothing.txt" in capsys.readouterr().err


def test_rows_longer_than_the_model_are_refused_with_both_numbers(model_dir, text, tmp_path, capsys):
    assert calibrated(model_dir, tmp_path / "out", text, "--seq-len", "4096") == 2
    assert "4,096 tokens were asked for; checkpoint takes 2 to 96 positions" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_named(model_dir, text, tmp_path, capsys, value):
    def spoil(array):
        array[3] = value

    broken = changed(model_dir, tmp_path / "model", "model.layers.1.mlp.up_proj.weight", spoil)
    linears = {linear.name: linear.input_name for linear in ModelGraph.open(broken).linears}
    assert calibrated(broken, tmp_path / "out", text) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {linears['model.layers.1.mlp.down_proj']} has ")
    assert "NaN or infinite" in said
    assert not (tmp_path / "out").exists()


def test_a_dead_channel_is_calibrated(model_dir, text, tmp_path):
    def kill(array):
        array[5] = 0

    dead = changed(model_dir, tmp_path / "model", "model.layers.0.input_layernorm.weight", kill)
    assert calibrated(dead, tmp_path / "out", text) == 0


def test_an_activation_that_is_always_zero_gets_a_scale(model_dir, text, tmp_path):
    dead = changed(model_dir, tmp_path / "model", "model.layers.0.post_attention_layernorm.weight", lambda a: a.fill(0))
    assert calibrated(dead, tmp_path / "out", text, "--kv", "int8") == 0
    scales = [
        float(node.inputs[1].const_value.numpy().min())
        for node in ir.load(tmp_path / "out" / "model.onnx").graph
        if node.op_type == "QuantizeLinear"
    ]
    assert min(scales) > 0
    assert np.isfinite(scales).all()


def test_a_pattern_that_names_nothing_is_misuse(model_dir, text, tmp_path, capsys):
    assert calibrated(model_dir, tmp_path / "out", text, "--keep", "*.down_projection") == 2
    assert "'*.down_projection' names no linear; they are called as model.layers.0" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_number_of_rows(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("piston.calibration.observe.sample.MOST", 64)
    rows = np.random.default_rng(0).integers(6, 250, (96, 32))
    graph = ModelGraph.open(model_dir)
    peaks = []
    for num_rows in (8, 96):
        tracemalloc.start()
        observe(graph, rows[:num_rows], tmp_path / str(num_rows), Progress(quiet=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
