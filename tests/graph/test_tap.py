import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse, run

from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside, without_ending

TEXT = """
g (float[3] x) => (float[3] y)
{
    doubled = Add (x, x)
    one = Neg (doubled)
    other = Abs (doubled)
    y = Mul (one, other)
}
"""
X = np.array([1, -2, 3], np.float32)


def test_named_values_become_outputs_once():
    model = parse(TEXT)
    GraphTap(model, ["doubled", "y", "one"])
    assert [value.name for value in model.graph.outputs] == ["y", "doubled", "one"]
    np.testing.assert_array_equal(run(model, {"x": X})["doubled"], [2, -4, 6])


def test_one_value_is_given_out_under_several_names():
    model = parse(TEXT)
    tap = GraphTap(model)
    for name in ("first", "second"):
        tap.give_out(tap.values["doubled"], name)
    found = run(model, {"x": X})
    np.testing.assert_array_equal(found["first"], [2, -4, 6])
    np.testing.assert_array_equal(found["second"], [2, -4, 6])


def test_an_input_is_given_out_too():
    model = parse(TEXT)
    tap = GraphTap(model)
    tap.give_out(model.graph.inputs[0], "copy")
    np.testing.assert_array_equal(run(model, {"x": X})["copy"], X)


def test_every_reader_reads_what_is_injected_and_the_graphs_own_value_is_still_given_out():
    model = parse(TEXT)
    tap = GraphTap(model)
    tap.inject(tap.values["doubled"], "doubled")
    tap.give_out(tap.values["doubled"], f"doubled{OWN}")
    found = run(model, {"x": X, f"doubled{GIVEN}": np.array([5, 6, 7], np.float32)})
    np.testing.assert_array_equal(found["y"], [-25, -36, -49])
    np.testing.assert_array_equal(found[f"doubled{OWN}"], [2, -4, 6])


def test_one_use_may_be_injected_alone_and_another_gets_the_same_input():
    model = parse(TEXT)
    tap = GraphTap(model)
    one, other = (tap.values[name].producer() for name in ("one", "other"))
    tap.inject(tap.values["doubled"], "doubled", [(other, 0)])
    assert one.inputs[0].name == "doubled"
    found = run(model, {"x": X, f"doubled{GIVEN}": np.array([5, 6, 7], np.float32)})
    np.testing.assert_array_equal(found["y"], [-10, 24, -42])
    tap.inject(tap.values["doubled"], "doubled", [(one, 0)])
    assert one.inputs[0] is other.inputs[0]
    assert list(tap.injected) == ["doubled"]


def test_a_graph_saved_beside_another_reads_its_weights_and_is_gone_afterwards(tmp_path):
    model = parse("g (float[3] x) => (float[3] y) { y = Add (x, w) }", w=np.array([1, 2, 3], np.float32))
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    before = sorted(tmp_path.iterdir())
    with saved_beside(ir.load(tmp_path / "model.onnx"), tmp_path / "model.onnx", "tapped") as path:
        assert path == tmp_path / "tapped.model.onnx"
        np.testing.assert_array_equal(ir.load(path).graph.initializers["w"].const_value.numpy(), [1, 2, 3])
    assert sorted(tmp_path.iterdir()) == before

    def fail():
        with saved_beside(ir.load(tmp_path / "model.onnx"), tmp_path / "model.onnx", "tapped"):
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert sorted(tmp_path.iterdir()) == before


def test_names_by_their_ending():
    assert without_ending(["a.given", "b", "c.own", "d.given", None], GIVEN) == ["a", "d"]
