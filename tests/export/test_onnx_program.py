"""Against torch: what is traced once, and what is decomposed by a second trace, computes what the module computes."""

import contextlib
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.onnx._internal.fx.passes import type_promotion
from zoo import share_tables_of_torch

from piston.checkpoint.quiet import quiet
from piston.export import onnx_program
from piston.export.onnx_program import onnx_of

X = torch.linspace(-2, 3, 24).reshape(2, 3, 4)
Y = torch.linspace(1, -4, 24).reshape(2, 3, 4)
W = torch.linspace(-1, 1, 20).reshape(5, 4)
KEPT = {
    "chunk": lambda x, y: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) + y.chunk(3, dim=1)[1],
    "contiguous": lambda x, y: (x.transpose(1, 2).contiguous() + 1).transpose(1, 2) * y,
    "layer_norm": lambda x, y: nn.functional.layer_norm(x, (4,), y[0, 0], y[1, 1], 1e-3),
    "linear": lambda x, y: nn.functional.linear(x, W, W[:, 0]) + nn.functional.linear(y, W),
    "matmul": lambda x, y: x.matmul(y.transpose(1, 2)) + x[0].matmul(y[1].t()),
    "reshape": lambda x, y: x.reshape(x.shape[0], -1) - y.transpose(1, 2).reshape(-1, 12),
    "rms_norm": lambda x, y: nn.functional.rms_norm(x, (4,), y[0, 1], 1e-3),
    "softmax": lambda x, y: x.softmax(-1) + y.softmax(1),
    "sym_size": lambda x, y: x * x.shape[0] + y.sum() / x.shape[0],
    "type_as": lambda x, y: (x * 2).to(torch.int64).type_as(y) + y,
}
SIMPLIFIED = {
    "and, or": lambda x, y: torch.where(((x > 0) & (y < 0)) | (y > 0.5), x, y),
    "minimum": torch.min,
    "square": lambda x, y: x.square() + y.square().mean(),
    "dropout in inference": lambda x, y: nn.functional.dropout(x, 0.5, training=False) + y,
    "to an integer": lambda x, y: x.to(torch.int32) + y.to(dtype=torch.int64, device="cpu"),
    "to what it is": lambda x, y: x.to(torch.float32) + y.to("cpu"),
    "a constant": lambda x, y: x + torch.tensor([1.0, 2.0, 3.0, 4.0]) * y,
}
DECOMPOSED = {
    "in place": lambda x, y: (x + 1).add_(y).mul_(2),
    "a slice in place": lambda x, y: (z := x * 1).__setitem__((slice(None), 0), y[:, 1]) or z,
    "no translation": lambda x, y: nn.functional.smooth_l1_loss(x, y, reduction="none"),
    "composite": lambda x, y: torch.einsum("bij,bkj->bik", x, y),
}


PROMOTED = {
    "an integer and a float": lambda x, y: (x > 0).to(torch.int64) + y,
    "a truth value and a float": lambda x, y: (x > y) * y,
    "integers divided": lambda x, y: x.to(torch.int32) / y.to(torch.int32).clamp_min(3),
    # Nothing here is rounded to half precision, which ONNX Runtime may leave out.
    "a truth value and half precision": lambda x, y: ((x > 0) * (y > 0).half()).float(),
    "a size": lambda x, y: x.to(torch.int64) * 0.5 + x.shape[0] + y,
    "behind a promoted one": lambda x, y: (((x > 0) + y) > 1) * x.to(torch.int32) - y,
}


class Computing(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x, y):
        return self.compute(x, y)


@pytest.fixture(autouse=True)
def shared_tables():
    share_tables_of_torch()


@pytest.fixture
def decomposed(monkeypatch):
    """A mock that decomposes programs, and counts them."""
    counting = mock.Mock(side_effect=ExportedProgram.run_decompositions)
    monkeypatch.setattr(ExportedProgram, "run_decompositions", counting)
    return counting


def check(compute):
    batch = torch.export.Dim("batch")
    module, shapes = Computing(compute).eval(), {"x": {0: batch}, "y": {0: batch}}
    with quiet(), torch.no_grad():
        model = onnx_of(module, ["x", "y"], ["z"], {"x": X, "y": Y}, shapes)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    for x, y in ((X, Y), (torch.cat([Y, X, X]), torch.cat([X, X, Y]))):  # as traced, and a batch of another size
        expected = compute(x.clone(), y.clone()).numpy()
        found = session.run(None, {"x": x.numpy(), "y": y.numpy()})[0]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return model


@pytest.mark.parametrize("compute", [pytest.param(KEPT[name], id=name) for name in KEPT])
def test_a_composite_operator_with_a_translation_is_kept(compute, decomposed):
    check(compute)
    assert not decomposed.called


def test_every_operator_that_is_kept_is_tested():
    names = {operator.overloadpacket.__name__ for operator in onnx_program.TRANSLATED}
    assert names == set(KEPT)


@pytest.mark.parametrize("compute", [pytest.param(SIMPLIFIED[name], id=name) for name in SIMPLIFIED])
def test_an_operator_that_has_an_equal_one_needs_no_second_trace(compute, decomposed):
    check(compute)
    assert not decomposed.called


@pytest.mark.parametrize("compute", [pytest.param(DECOMPOSED[name], id=name) for name in DECOMPOSED])
def test_what_changes_its_input_or_has_no_translation_is_decomposed(compute, decomposed):
    check(compute)
    assert decomposed.call_count == 1


def test_a_program_is_traced_with_the_axes_and_constants_it_has(decomposed):
    batch = torch.export.Dim("batch")
    module = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)).eval()
    with quiet(), torch.no_grad():
        program = torch.export.export(module, (X[0],), dynamic_shapes=({0: batch},))
        model = onnx_of(program, ["x"], ["z"])
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    rows = X.reshape(6, 4)
    np.testing.assert_allclose(session.run(None, {"x": rows.numpy()})[0], module(rows).detach().numpy(), atol=1e-6)
    assert not decomposed.called


@pytest.mark.parametrize("name", PROMOTED)
def test_types_are_promoted_as_by_running_every_operator_again(name, monkeypatch):
    by_record = check(PROMOTED[name])
    monkeypatch.setattr(onnx_program, "_promotion_by_record", contextlib.nullcontext)
    by_running = check(PROMOTED[name])
    assert str(ir.to_proto(by_record).graph) == str(ir.to_proto(by_running).graph)


def test_operators_that_are_not_promoted_are_not_run_again():
    run = fx.Interpreter.run_node
    with mock.patch.object(fx.Interpreter, "run_node", autospec=True, side_effect=run) as runs:
        check(KEPT["rms_norm"])
    pass_class = type_promotion._TypePromotionInterpreter
    nodes = [node for interpreter, node in (call.args for call in runs.mock_calls) if type(interpreter) is pass_class]
    assert {node.op for node in nodes} == {"placeholder", "output"}
