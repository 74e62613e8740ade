import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.core.errors import MisuseError
from piston.evaluation.windows import Window, Windowing

sizes = st.integers(2, 40).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length - 1)))


@given(sizes, st.integers(0, 200), st.integers(0, 1))
def test_every_token_is_scored_exactly_once(size, num_tokens, num_prefix):
    length, stride = size
    scored = [
        token
        for window in Windowing(length=length, stride=stride).windows(num_tokens, num_prefix)
        for token in range(window.first, window.end)
    ]
    assert scored == list(range(1 - num_prefix, num_tokens))


@given(sizes, st.integers(0, 200), st.integers(0, 1))
def test_every_token_has_the_promised_context_or_all_there_is(size, num_tokens, num_prefix):
    length, stride = size
    for window in Windowing(length=length, stride=stride).windows(num_tokens, num_prefix):
        for token in range(window.first, window.end):
            context = num_prefix + token - window.start
            assert context >= min(length - stride, num_prefix + token)
            assert context >= 1


@given(sizes, st.integers(0, 200), st.integers(0, 1))
def test_no_window_is_longer_than_stated(size, num_tokens, num_prefix):
    length, stride = size
    windows = list(Windowing(length=length, stride=stride).windows(num_tokens, num_prefix))
    assert all(num_prefix + window.end - window.start <= length for window in windows)
    assert [window.start for window in windows] == [index * stride for index in range(len(windows))]


def test_windows_of_a_text_can_be_written_down():
    windows = list(Windowing(length=4, stride=2).windows(9))
    assert windows == [Window(0, 1, 4), Window(2, 4, 6), Window(4, 6, 8), Window(6, 8, 9)]


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 9), (8, 0), (8, -1), (1, 1), (0, 0)])
def test_a_stride_that_leaves_tokens_without_context_is_misuse(length, stride):
    with pytest.raises(MisuseError, match=f"--window is {length} and --stride {stride}"):
        Windowing(length=length, stride=stride)


def test_a_prefix_that_leaves_less_than_a_stride_is_misuse():
    with pytest.raises(MisuseError, match="3 of the 8 positions"):
        list(Windowing(length=8, stride=6).windows(20, 3))


def test_the_rule_states_its_numbers():
    assert "512 positions, stride 128" in Windowing(stride=128).rule
    assert "at least 384 of context" in Windowing(stride=128).rule
