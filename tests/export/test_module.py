import numpy as np
import pytest
import torch
from modules import SHAPES, Scorer, example
from torch import nn

from piston.core.bundle.examples import EXAMPLES, read_examples
from piston.core.bundle.interface import MODULE
from piston.core.errors import CheckpointError, MisuseError, OutputExistsError, UnsupportedModelError
from piston.export import export_module


class Of(nn.Module):
    """A module of one function of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


X = {"x": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("module") / "model"
    return export_module(Scorer(), example(), out, dynamic_shapes=SHAPES), out


def test_inputs_outputs_and_axes_have_the_names_of_the_user(exported):
    interface = exported[0].graphs[MODULE]
    assert [(t.name, t.dtype, t.shape) for t in interface.inputs] == [
        ("signal", "float32", ("batch", 3, "time")),
        ("kind", "int64", ("batch",)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in interface.outputs] == [
        ("scores", "float32", ("batch", 5)),
        ("best", "int64", ("batch",)),
    ]


def test_examples_hold_what_the_module_gives_at_several_sizes(exported):
    examples, module = read_examples(exported[1] / EXAMPLES), Scorer().eval()
    assert len({tuple(item.inputs["signal"].shape) for item in examples}) == len(examples) >= 3
    for item in examples:
        found = module(**{name: torch.from_numpy(array) for name, array in item.inputs.items()})
        np.testing.assert_allclose(item.outputs["scores"], found["scores"].detach().numpy(), rtol=1e-6)
        assert set(item.inputs["kind"].tolist()) <= {1, 9}  # drawn from the example: ids stay ids
    assert exported[0].made_by["parity"]["max_abs"] < 1e-5


def test_a_module_in_training_is_exported_for_evaluation_and_left_in_training(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return self.inner(x)

    outer = Named()
    outer.inner[0].eval()  # frozen
    export_module(outer, X, tmp_path / "model")
    assert [part.training for part in outer.modules()] == [True, True, False, True]
    (found,) = read_examples(tmp_path / "model" / EXAMPLES)
    np.testing.assert_allclose(found.outputs["output"], module[0](X["x"]).detach().numpy(), rtol=1e-6)


def test_several_outputs_are_numbered_or_named(tmp_path):
    module = Of(lambda x: (x + 1, x * 2))
    names = [t.name for t in export_module(module, X, tmp_path / "a").graphs[MODULE].outputs]
    assert names == ["output_0", "output_1"]
    manifest = export_module(module, X, tmp_path / "b", output_names=["more", "twice"])
    assert [t.name for t in manifest.graphs[MODULE].outputs] == ["more", "twice"]


def test_a_module_that_cannot_be_traced_names_the_line(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"test_module.py, line \d+, in forward: `if x.sum\(\) > 0:`"):
        export_module(Branching(), X, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_size_that_the_module_refuses_is_recorded(tmp_path):
    module = Of(lambda x: x[:, 1:].reshape(x.shape[0], -1).amax(dim=1))
    manifest = export_module(module, X, tmp_path / "model", dynamic_shapes={"x": {1: "width"}})
    assert any("width 1" in remark for remark in manifest.made_by["remarks"])


def test_bounds_of_an_axis_are_kept(tmp_path):
    width = torch.export.Dim("width", min=2, max=4)
    manifest = export_module(Of(lambda x: x.sum(1)), X, tmp_path / "model", dynamic_shapes={"x": {1: width}})
    assert {sizes["width"] for sizes in manifest.made_by["parity"]["sizes"]} == {2, 3, 4}


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        ({}, {}, "not be empty"),
        ({"x": torch.zeros(2, 3, dtype=torch.complex64)}, {}, "complex64"),
        ({"x": torch.zeros(0, 3)}, {}, "empty"),
        (X, {"dynamic_shapes": {"y": {0: "batch"}}}, "names 'y'"),
        (X, {"dynamic_shapes": {"x": {2: "batch"}}}, "no axis 2"),
        (X, {"dynamic_shapes": {"x": {0: "n", 1: "n"}}}, "one size"),
        ({"x": torch.ones(1, 3)}, {"dynamic_shapes": {"x": {0: "batch"}}}, "2 or more"),
        (X, {"output_names": ["a", "b"]}, "names 2 outputs, and the module gives 1"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, options, reason, tmp_path):
    with pytest.raises(MisuseError, match=reason):
        export_module(Of(lambda x: x), inputs, tmp_path / "model", **options)


def test_a_module_that_is_not_in_float32_is_refused(tmp_path):
    with pytest.raises(MisuseError, match=r"module.float\(\)"):
        export_module(nn.Linear(3, 3).half(), {"input": torch.ones(2, 3)}, tmp_path / "model")


def test_an_output_that_is_an_input_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="'output' is an input"):
        export_module(Of(lambda x: x), X, tmp_path / "model")


def test_an_axis_whose_size_the_module_fixes_is_told(tmp_path):
    with pytest.raises(MisuseError, match="fails at width 1"):
        export_module(Of(lambda x: x @ torch.ones(3, 2)), X, tmp_path / "model", dynamic_shapes={"x": {1: "width"}})


def test_a_module_that_computes_nan_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="computes NaN in 'output'"):
        export_module(Of(lambda x: x - x / 0), X, tmp_path / "model")


def test_an_output_that_is_there_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "photo.jpg").touch()
    with pytest.raises(OutputExistsError):
        export_module(Of(lambda x: x), X, tmp_path / "model")
