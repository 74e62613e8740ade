import pytest

from piston.runtime.completion import Timings


def test_speed_is_that_of_the_tokens_after_the_first():
    assert Timings(time_to_first_token=1.0, total=3.0, num_tokens=5).tokens_per_second == 2.0


@pytest.mark.parametrize(("total", "num_tokens"), [(1.0, 5), (3.0, 1), (0.0, 0)])
def test_there_is_no_speed_without_time_or_tokens(total, num_tokens):
    assert Timings(time_to_first_token=1.0, total=total, num_tokens=num_tokens).tokens_per_second == 0.0
