import pytest

from piston.runtime.generate.completion import Drafts, Timings


def test_speed_is_that_of_the_tokens_after_the_first():
    assert Timings(time_to_first_token=1.0, total=3.0, num_tokens=5).tokens_per_second == 2.0


@pytest.mark.parametrize(("total", "num_tokens"), [(1.0, 5), (3.0, 1), (0.0, 0)])
def test_there_is_no_speed_without_time_or_tokens(total, num_tokens):
    assert Timings(time_to_first_token=1.0, total=total, num_tokens=num_tokens).tokens_per_second == 0.0


def test_the_time_per_token_is_that_of_the_tokens_after_the_first():
    timings = Timings(time_to_first_token=1.0, total=3.0, num_tokens=5)
    assert timings.time_per_output_token == 0.5
    assert timings.to_json()["time_per_output_token_s"] == 0.5


def test_acceptance_of_no_guesses_is_none_of_them():
    assert Drafts(num_drafted=0, num_accepted=0, num_verified=0).acceptance == 0.0


def test_acceptance_is_the_share_that_came_true():
    assert Drafts(num_drafted=8, num_accepted=6, num_verified=2).to_json()["acceptance"] == 0.75
