import numpy as np
import pytest
import torch
from torch import nn

from piston.distillation.rounding import InputScale, StudentLinear, rounded
from piston.graph.rounding import Grid, round_to_nearest


def linear_of(outputs, inputs, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=False)


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 32), Grid(8)], ids=str)
@pytest.mark.parametrize("inputs", [64, 80], ids=["whole blocks", "a short last block"])
def test_a_weight_is_bit_for_bit_what_calibration_rounds_it_to(grid, inputs):
    linear = linear_of(48, inputs)
    expected = round_to_nearest(linear.weight.detach().numpy().T.copy(), grid, search=True)
    student = StudentLinear(linear, grid=grid, scales=torch.from_numpy(expected.scales))
    assert np.array_equal(student.rounded_weight().detach().numpy().T, expected.dequantized())


def test_an_input_is_rounded_half_to_even_and_saturates_at_the_codes_of_int8():
    student = StudentLinear(linear_of(2, 6), read=InputScale(0.5))
    read = torch.tensor([[0.25, 0.75, -0.25, 63.4, 70.0, -70.0]])
    assert student.rounded_input(read).tolist() == [[0.0, 1.0, -0.0, 63.5, 63.5, -64.0]]


def test_what_a_fine_scale_leaves_over_is_rounded_by_the_coarse_one():
    student = StudentLinear(linear_of(2, 2), read=InputScale(0.5, ratio=7))
    # 100 is 63.5 in fine codes and 36.5 over: 10.43 steps of 3.5
    assert student.rounded_input(torch.tensor([[1.2, 100.0]])).tolist() == [[1.0, 63.5 + 35.0]]


def test_gradients_pass_the_rounding_and_stop_where_it_saturates():
    value = torch.tensor([0.3, 5.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    rounded(value, scale, (-8, 7)).sum().backward()
    assert value.grad.tolist() == [1.0, 0.0]
    # of 0.3: code 1 less 0.6 steps; of 5.0: the highest code, 7
    assert scale.grad.item() == pytest.approx(0.4 + 7)


def test_masked_weights_stay_zero_and_get_no_gradient():
    linear = linear_of(2, 4)
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    student = StudentLinear(linear, mask=mask)
    student(torch.ones(1, 4)).sum().backward()
    assert torch.equal(student.rounded_weight() == 0, ~mask)
    assert torch.equal(student.weight.grad != 0, mask)
