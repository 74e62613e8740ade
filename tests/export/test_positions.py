import pytest
import torch
from torch import nn

from piston.core.errors import MisuseError, UnsupportedModelError
from piston.export.positions import replace_positions


class Table(nn.Module):
    """Positions as transformers' modules embed them: the offset comes with the call."""

    def forward(self, input_ids_shape, past_key_values_length=0):
        places = torch.arange(input_ids_shape[1]) + past_key_values_length
        return torch.stack([places, places**2], dim=1).float()


class ByLength(Table):
    def forward(self, input_ids_shape, past_key_values_length=0):
        return super().forward(input_ids_shape, past_key_values_length) / input_ids_shape[1]


def test_a_table_is_read_at_its_positions():
    module = Table()
    replace_positions(module, 6, lambda: torch.tensor([[4, 1]]))
    assert module((1, 2)).tolist() == [[[4.0, 16.0], [1.0, 1.0]]]


def test_a_formula_of_the_length_is_no_table():
    with pytest.raises(UnsupportedModelError, match="ByLength is not a table of positions"):
        replace_positions(ByLength(), 6, None)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_too_few_positions_to_tell_are_refused(size):
    with pytest.raises(MisuseError, match=f"{size} positions are too few for Table; export with --context 4 or more"):
        replace_positions(Table(), size, None)
