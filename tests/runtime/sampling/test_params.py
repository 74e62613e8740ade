import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from piston.core.errors import MisuseError
from piston.runtime.sampling.params import SamplingParams

EVERY_OPTION = {
    "max_tokens": 9,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.8,
    "repetition_penalty": 1.2,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "no_repeat_ngram_size": 3,
    "logit_bias": {"5": -100.0, "6": 1.5},
    "bad_words": ["rude"],
    "bad_words_ids": [[7, 8], [9]],
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [3],
    "forced_bos_token_id": 4,
    "forced_eos_token_id": 2,
    "stop": ["\n\n", "END"],
    "stop_token_ids": [3, 4],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "seed": 11,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 5,
    "logprob_token_ids": [4, 2],
    "echo": True,
    "prompt_lookup_num_tokens": 6,
}


def test_default_is_greedy():
    assert SamplingParams().is_greedy


def test_any_temperature_above_zero_is_not_greedy():
    assert not SamplingParams(temperature=1e-9).is_greedy


def test_sampling_cannot_be_changed():
    sampling = SamplingParams(logit_bias={1: 2.0})
    with pytest.raises(FrozenInstanceError):
        sampling.top_k = 3
    with pytest.raises(TypeError):
        sampling.logit_bias[1] = 3.0


def test_logit_bias_is_a_copy_of_the_callers():
    bias = {1: 2.0}
    sampling = SamplingParams(logit_bias=bias)
    bias[1] = 3.0
    assert sampling.logit_bias == {1: 2.0}


def test_equal_samplings_hash_equally_and_bias_tells_them_apart():
    one, same, other = (
        SamplingParams(logit_bias={1: 2}),
        SamplingParams(logit_bias={1: 2.0}),
        SamplingParams(logit_bias={1: 3}),
    )
    assert hash(one) == hash(same)
    assert one == same
    assert one != other


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda sampling: pickle.loads(pickle.dumps(sampling))])  # noqa: S301
def test_copies_and_pickles_are_equal(duplicate):
    sampling = SamplingParams.from_mapping(EVERY_OPTION)
    assert duplicate(sampling) == sampling


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"stop": "END"}, ("stop", ("END",))),
        ({"stop": ["a", "b"]}, ("stop", ("a", "b"))),
        ({"bad_words": "rude"}, ("bad_words", ("rude",))),
        ({"stop_token_ids": [2, np.int64(3)]}, ("stop_token_ids", (2, 3))),
        ({"suppress_tokens": [2, np.int64(3)]}, ("suppress_tokens", (2, 3))),
        ({"bad_words_ids": [[np.int64(3), 4], [5]]}, ("bad_words_ids", ((3, 4), (5,)))),
        ({"logit_bias": {"7": 1}}, ("logit_bias", {7: 1.0})),
        ({"temperature": 1}, ("temperature", 1.0)),
        ({"temperature": np.float32(0.5)}, ("temperature", 0.5)),
        ({"max_tokens": np.int32(8)}, ("max_tokens", 8)),
    ],
)
def test_values_are_stored_as_the_declared_type(given, stored):
    name, value = stored
    kept = getattr(SamplingParams(**given), name)
    assert kept == value
    json.dumps(SamplingParams(**given).to_json())
    assert type(kept) is type(value) or name == "logit_bias"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -5, "at least 1"),
        ("max_tokens", True, "integer"),
        ("max_tokens", 5.0, "integer"),
        ("max_tokens", "5", "integer"),
        ("max_tokens", None, "integer"),
        ("min_tokens", -1, "at least 0"),
        ("min_tokens", 257, "at most max_tokens, which is 256"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "finite"),
        ("temperature", float("inf"), "finite"),
        ("temperature", True, "finite number"),
        ("temperature", 10**400, "finite number"),
        ("temperature", "0.5", "finite number"),
        ("top_k", -2, "-1 or 0 for off"),
        ("top_k", 1.5, "integer"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_p", float("nan"), "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 1.1, "from 0 to 1"),
        ("typical_p", 0, "above 0 and at most 1"),
        ("typical_p", 2, "above 0 and at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_penalty", float("inf"), "finite"),
        ("presence_penalty", 2.1, "from -2 to 2"),
        ("presence_penalty", -2.1, "from -2 to 2"),
        ("frequency_penalty", 2.1, "from -2 to 2"),
        ("frequency_penalty", -2.1, "from -2 to 2"),
        ("no_repeat_ngram_size", -1, "at least 0"),
        ("seed", -1, "None for a fresh one"),
        ("seed", 1.5, "integer"),
        ("n", 0, "at least 1"),
        ("top_logprobs", 21, "from 0 to 20"),
        ("top_logprobs", -1, "from 0 to 20"),
        ("top_logprobs", 3, "0 unless logprobs is True"),
        ("logprob_token_ids", (3,), "empty unless logprobs is True"),
        ("stop", "", "non-empty string"),
        ("stop", ["a", ""], "non-empty string"),
        ("stop", [1], "non-empty string"),
        ("stop", {"a"}, "a list of them"),
        ("bad_words", 3, "a list of them"),
        ("stop_token_ids", 2, "a list of token ids"),
        ("logit_bias", [(1, 2.0)], "a mapping"),
        ("logprobs", 1, "True or False"),
        ("echo", "yes", "True or False"),
        ("ignore_eos", 0, "True or False"),
        ("include_stop_str_in_output", None, "True or False"),
    ],
)
def test_a_wrong_value_is_refused_naming_option_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(MisuseError) as error:
        SamplingParams(**{name: value})
    message = str(error.value)
    assert message.startswith(f"{name} is {value!r}; it must be ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_a_text_that_is_no_unicode_is_refused_with_its_place(name):
    with pytest.raises(MisuseError, match=rf"^{name}\[1\] has the unpaired surrogate \\ud800 at character 1;"):
        SamplingParams(**{name: ["a", "b\ud800"]})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"stop_token_ids": [1, -2]}, "stop_token_ids[1] is -2"),
        ({"stop_token_ids": [True]}, "stop_token_ids[0] is True"),
        ({"logit_bias": {4: 100.5}}, "logit_bias[4] is 100.5"),
        ({"logit_bias": {4: float("-inf")}}, "logit_bias[4] is -inf"),
        ({"logit_bias": {4: float("nan")}}, "logit_bias[4] is nan"),
        ({"logit_bias": {-4: 1.0}}, "a key of logit_bias is -4"),
        ({"logit_bias": {"word": 1.0}}, "a key of logit_bias is 'word'"),
    ],
)
def test_a_wrong_element_is_refused_by_its_place(given, named):
    with pytest.raises(MisuseError) as error:
        SamplingParams(**given)
    assert str(error.value).startswith(named)


@pytest.mark.parametrize(
    "edge",
    [
        {"top_p": 1, "min_p": 1, "typical_p": 1},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"logprobs": True, "top_logprobs": 20},
        {"logit_bias": {0: 100, 1: -100}},
        {"min_tokens": 256, "max_tokens": 256},
        {"top_k": 0},
        {"seed": 2**80},
    ],
)
def test_the_edges_of_every_range_are_allowed(edge):
    SamplingParams(**edge)


def test_several_greedy_answers_are_refused_because_they_would_be_identical():
    with pytest.raises(MisuseError, match="3 identical answers"):
        SamplingParams(n=3)


def test_json_round_trip_keeps_every_option():
    assert {field.name for field in fields(SamplingParams)} == set(EVERY_OPTION)
    sampling = SamplingParams.from_mapping(EVERY_OPTION)
    assert sampling.to_json() == EVERY_OPTION
    assert SamplingParams.from_json(json.loads(json.dumps(sampling.to_json()))) == sampling


def test_default_survives_the_json_round_trip():
    assert SamplingParams.from_json(SamplingParams().to_json()) == SamplingParams()


@pytest.mark.parametrize(
    ("synonym", "option", "value"),
    [
        ("max_new_tokens", "max_tokens", 8),
        ("max_completion_tokens", "max_tokens", 8),
        ("min_new_tokens", "min_tokens", 8),
        ("stop_strings", "stop", ("END",)),
    ],
)
def test_synonyms_set_the_option_they_mean(synonym, option, value):
    assert getattr(SamplingParams.from_mapping({synonym: value}), option) == value


def test_num_return_sequences_means_n():
    assert SamplingParams.from_mapping({"num_return_sequences": 2, "do_sample": True}).n == 2


def test_an_option_given_twice_is_refused():
    with pytest.raises(MisuseError, match="max_tokens is given twice"):
        SamplingParams.from_mapping({"max_tokens": 1, "max_new_tokens": 1})


def test_do_sample_false_forces_greedy():
    assert SamplingParams.from_mapping({"do_sample": False, "temperature": 0.7}).is_greedy


def test_do_sample_true_alone_means_temperature_one():
    assert SamplingParams.from_mapping({"do_sample": True}).temperature == 1.0


def test_do_sample_true_keeps_the_temperature_given():
    assert SamplingParams.from_mapping({"do_sample": True, "temperature": 0.7}).temperature == 0.7


@pytest.mark.parametrize("given", [{"do_sample": True, "temperature": 0}, {"do_sample": "yes"}])
def test_contradictory_or_unreadable_do_sample_is_refused(given):
    with pytest.raises(MisuseError, match=r"^do_sample is "):
        SamplingParams.from_mapping(given)


@pytest.mark.parametrize(
    ("typo", "meant"), [("temprature", "temperature"), ("topp", "top_p"), ("max_new_token", "max_new_tokens")]
)
def test_an_unknown_name_is_refused_with_the_nearest_option(typo, meant):
    with pytest.raises(MisuseError, match=rf"{typo} is not an option of SamplingParams; did you mean {meant}\?"):
        SamplingParams.from_mapping({typo: 1})


def test_a_name_near_to_nothing_is_refused_with_the_list():
    with pytest.raises(MisuseError, match="zzz is not an option of SamplingParams; the options are bad_words, "):
        SamplingParams.from_mapping({"zzz": 1})


def test_an_unknown_name_is_refused_even_without_a_value():
    with pytest.raises(MisuseError, match="temprature"):
        SamplingParams.from_mapping({"temprature": None})


@pytest.mark.parametrize(
    "name", ["num_beams", "length_penalty", "early_stopping", "response_format", "max_length", "tools"]
)
def test_an_option_known_elsewhere_is_refused_by_name_with_the_reason(name):
    with pytest.raises(MisuseError, match=f"^{name} is not supported: Piston has no .+; leave it out"):
        SamplingParams.from_mapping({name: 1})


def test_none_means_not_given():
    absent = {"temperature": None, "stop": None, "seed": None, "do_sample": None, "response_format": None}
    assert SamplingParams.from_mapping(absent) == SamplingParams()
