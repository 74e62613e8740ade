"""Generation settings: transformers decides which file counts; what is recorded, and what the user is told."""

import json
import shutil

import pytest
from checkpoints import write_checkpoint
from transformers import AutoModelForCausalLM

from piston.checkpoint.checkpoint import load_config, load_model, locate
from piston.checkpoint.generation_defaults import check_readable, read_defaults
from piston.checkpoint.quiet import quiet
from piston.checkpoint.tokenizer import write_tokenizer
from piston.core.errors import CheckpointError
from piston.runtime.sampling.params import SamplingParams

ABSENT = "absent"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, num_hidden_layers=1)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def write_settings(directory, generation, config_eos=2):
    config = json.loads((directory / "config.json").read_text())
    config.pop("eos_token_id")
    (directory / "config.json").write_text(
        json.dumps(config if config_eos is ABSENT else config | {"eos_token_id": config_eos})
    )
    path = directory / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))


def read(directory, out):
    found = locate(str(directory))
    defaults = read_defaults(found, load_model(found).generation_config)
    out.mkdir()
    return defaults, *write_tokenizer(found, load_config(found), defaults, out)


@pytest.mark.parametrize("config_eos", [2, -1, [5, 6], None, ABSENT], ids=str)
@pytest.mark.parametrize(
    "generation", [None, {}, {"eos_token_id": 256}, {"eos_token_id": [7, 2]}, {"eos_token_id": -1}], ids=str
)
def test_what_ends_transformers_generate_ends_an_answer_and_nothing_else(checkpoint, tmp_path, generation, config_eos):
    write_settings(checkpoint, generation, config_eos)
    with quiet():
        expected = AutoModelForCausalLM.from_pretrained(checkpoint).generation_config.eos_token_id
    expected = [] if expected is None else [expected] if isinstance(expected, int) else expected
    _, tokenizer, remarks = read(checkpoint, tmp_path / "out")
    assert tokenizer.eos_token_ids == tuple(sorted(token for token in expected if token >= 0))
    assert bool(remarks) == (2 not in tokenizer.eos_token_ids)  # 2 is the tokenizer's


def test_begin_and_padding_are_the_settings_own_before_the_tokenizers(checkpoint, tmp_path):
    write_settings(checkpoint, {"bos_token_id": 7, "pad_token_id": -1, "eos_token_id": 2})
    _, tokenizer, _ = read(checkpoint, tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (7, 0)


@pytest.mark.parametrize("eos", ["</s>", 2.5, True, [2, "x"]])
def test_an_end_token_that_is_no_id_is_refused(checkpoint, tmp_path, eos):
    write_settings(checkpoint, {"eos_token_id": eos})
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', ""])
def test_damaged_settings_are_refused_where_transformers_reads_config_json_in_their_place(checkpoint, text):
    (checkpoint / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        check_readable(locate(str(checkpoint)))


def defaults_for(checkpoint, **settings):
    write_settings(checkpoint, {"eos_token_id": 2} | settings)
    found = locate(str(checkpoint))
    return read_defaults(found, load_model(found).generation_config)


def test_settings_that_change_greedy_answers_are_recorded_and_told(checkpoint):
    settings = {
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [5],
        "begin_suppress_tokens": [6],
        "bad_words_ids": [[7, 8]],
        "stop_strings": ["x"],
        "repetition_penalty": 1.1,
        "min_new_tokens": 3,
    }
    defaults = defaults_for(checkpoint, **settings)
    assert defaults.sampling == settings
    (remark,) = defaults.remarks
    assert all(name in remark for name in settings)
    assert "--checkpoint-sampling" in remark
    sampling = SamplingParams.from_mapping(defaults.sampling)
    assert (sampling.suppress_tokens, sampling.bad_words_ids, sampling.stop) == ((5,), ((7, 8),), ("x",))


def test_settings_of_sampling_alone_are_recorded_without_a_word(checkpoint):
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 9}
    defaults = defaults_for(checkpoint, **settings, use_cache=False, output_scores=True, cache_implementation="static")
    assert (defaults.sampling, defaults.remarks) == (settings, ())


def test_top_k_is_transformers_own_default_where_a_sampled_checkpoint_does_not_state_it(checkpoint):
    assert defaults_for(checkpoint, do_sample=True).sampling == {"do_sample": True, "top_k": 50}


def test_neutral_values_are_not_recorded(checkpoint):
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
    assert defaults_for(checkpoint, **neutral).sampling == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("exponential_decay_length_penalty", [3, 1.5]),
        ("sequence_bias", [[[5], -10.0]]),
        ("min_length", 9),
        ("repetition_penalty", -1),
        ("guidance_scale", 1.5),
    ],
)
def test_settings_that_piston_cannot_apply_are_named(checkpoint, name, value):
    defaults = defaults_for(checkpoint, **{name: value})
    assert defaults.sampling == {name: value}
    assert f"cannot apply these generation settings of the checkpoint: {name}" in defaults.remarks[0]


def test_names_that_transformers_does_not_know_are_told_and_left_out(checkpoint):
    defaults = defaults_for(checkpoint, temprature=0.5)
    assert defaults.sampling == {}
    assert "temprature" in defaults.remarks[0]
