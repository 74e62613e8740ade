import pytest

from piston.runtime.generate.chunk_size import AUTO_STEPS, LEAST_CHUNK, SHORT_CHUNK, SHORT_PROMPT, ChunkSize

LONG = SHORT_PROMPT + 1


@pytest.mark.parametrize(
    ("seconds_a_token", "expected"), [(0.1 / 48.5, 48), (0.1 / 44, 48), (0.1 / 40, 36), (1.0, LEAST_CHUNK)]
)
def test_a_chunk_is_as_long_as_the_measured_speed_allows(seconds_a_token, expected):
    size = ChunkSize(0.1)
    size.observe_prefill(200, 200 * seconds_a_token)
    assert size.num_tokens(LONG) == expected


def test_by_default_a_chunk_takes_as_long_as_two_steps():
    size = ChunkSize("auto")
    assert size.num_tokens(LONG) == LEAST_CHUNK
    size.observe_prefill(64, 64 * 0.001)
    size.observe_step(0.03)
    assert AUTO_STEPS == 2
    assert size.num_tokens(LONG) == 60
    size.observe_step(0.01)  # rows that ended make steps shorter
    assert size.num_tokens(LONG) < 60


def test_a_measurement_out_of_line_changes_the_size_by_a_part():
    size = ChunkSize(0.1)
    size.observe_prefill(100, 0.1)
    size.observe_prefill(100, 0.3)
    assert LEAST_CHUNK < size.num_tokens(LONG) < 96


def test_a_chunk_grows_where_its_first_token_costs_most():
    size, num_tokens = ChunkSize(0.021), LEAST_CHUNK
    for _ in range(30):
        size.observe_prefill(num_tokens, 0.0065 + 0.00042 * num_tokens)  # measured of SmolLM2 on two cores
        num_tokens = size.num_tokens(LONG)
    assert num_tokens == 36  # (21 - 6.5) / 0.42 = 34.5


def test_by_default_short_prompts_have_longer_chunks_and_a_stated_bound_holds_for_all():
    for stall, expected in (("auto", SHORT_CHUNK), (0.001, LEAST_CHUNK)):
        size = ChunkSize(stall)
        assert size.num_tokens(SHORT_PROMPT) == expected
        size.observe_prefill(100, 0.1)
        size.observe_step(0.001)
        assert [size.num_tokens(SHORT_PROMPT), size.num_tokens(LONG)] == [expected, LEAST_CHUNK]
