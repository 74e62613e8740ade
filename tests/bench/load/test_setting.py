import json

import numpy as np
import pytest
from loaded import setting_of

from piston.bench.load.cli import ranges
from piston.bench.load.setting import LoadRequest, LoadWork
from piston.core.errors import MisuseError


def test_requests_of_an_open_loop_come_at_exponential_gaps_of_the_rate():
    work = LoadWork(setting_of(rate=4.0, requests=4000), 1000)
    gaps = np.diff([0.0, *(request.due for request in work.requests(0))])
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution, and of no fixed gap


def test_drawn_lengths_fill_their_range_evenly():
    work = LoadWork(setting_of(requests=3000, prompt_len=(10, 19), gen_len=(1, 4)), 1000)
    requests = work.requests(0)
    lengths, counts = np.unique([len(request.prompt) for request in requests], return_counts=True)
    assert lengths.tolist() == list(range(10, 20))
    assert counts.min() > 230
    assert {request.gen_len for request in requests} == {1, 2, 3, 4}


def test_prompts_share_their_prefix_and_nothing_else_and_differ_between_rounds():
    work = LoadWork(setting_of(requests=6, prompt_len=(40, 40), shared_prefix=30), 50_000)
    first, second = ([request.prompt for request in work.requests(index)] for index in (0, 1))
    assert len({prompt[:30] for prompt in first}) == 1
    assert len({prompt[30] for prompt in first}) == 6
    assert first[0][:30] != second[0][:30]
    assert work.requests(0) == work.requests(0)


def test_the_long_prompt_comes_in_the_middle_and_is_marked():
    requests = LoadWork(setting_of(rate=1.0, requests=9, long_prompt=500), 1000).requests(0)
    assert [request.is_long for request in requests] == [False] * 9 + [True]
    assert (len(requests[-1].prompt), requests[-1].due) == (500, requests[4].due)


def test_the_body_asks_for_exactly_as_many_tokens_and_for_the_servers_own_count():
    body = json.loads(LoadRequest(0.0, (5, 6), 7).body("toy"))
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"], body["temperature"]) == ([5, 6], 7, True, 0)
    assert body["stream_options"] == {"include_usage": True}


def test_lengths_are_fixed_or_ranges():
    assert ranges("128,64-256", "--prompt-len") == [(128, 128), (64, 256)]
    for text in ("0", "9-3", "x", "1-", "", "-5"):
        with pytest.raises(MisuseError, match="--prompt-len"):
            ranges(text, "--prompt-len")


def test_settings_of_near_rates_have_different_names():
    assert {setting_of(rate=rate).name.partition(",")[0] for rate in (2.0, 1234.567, 1234.568)} == {
        "2 a second",
        "1234.567 a second",
        "1234.568 a second",
    }
