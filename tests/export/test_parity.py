"""The parity gate: a graph that answers otherwise is not published, and the layer at fault is named."""

import onnx_ir as ir
import pytest
from checkpoints import write_checkpoint

import piston.export
from piston.core.errors import ParityError
from piston.export import ExportOptions, export_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture
def broken(monkeypatch):
    """Scale one weight of the written graph, as a faulty pass would."""

    def install(name, factor):
        from piston.export import passes

        honest = passes.canonicalize

        def canonicalize(model):
            honest(model)
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(value.const_value.numpy() * factor, name=name)

        monkeypatch.setattr(passes, "canonicalize", canonicalize)

    return install


@pytest.mark.parametrize(
    ("weight", "blamed"),
    [
        ("model.layers.0.mlp.down_proj.weight", "layer 0"),
        ("model.layers.1.self_attn.k_proj.weight", "layer 1"),
        ("model.layers.1.input_layernorm.weight", "layer 1"),
        ("lm_head.weight", "after the last one"),
    ],
)
def test_a_wrong_scale_fails_the_export_and_names_the_layer(checkpoint, tmp_path, broken, weight, blamed):
    broken(weight, 1.02)
    with pytest.raises(ParityError, match=blamed):
        export_model(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_within_the_bound_passes(checkpoint, tmp_path, broken):
    broken("lm_head.weight", 1 + 1e-6)
    manifest = export_model(checkpoint, tmp_path / "out")
    assert manifest.made_by["parity"]["max_abs"] <= manifest.made_by["parity"]["bound"]


def test_without_the_gate_the_manifest_says_so(checkpoint, tmp_path, broken):
    broken("lm_head.weight", 1.02)
    manifest = export_model(checkpoint, tmp_path / "out", ExportOptions(check_parity=False))
    assert manifest.made_by["parity"] is None


def test_the_gate_is_on_by_default():
    assert piston.export.ExportOptions().check_parity
