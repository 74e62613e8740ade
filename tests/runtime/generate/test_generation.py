import itertools

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from toy_model import BOT, END, USER, VOCAB_SIZE, answering, byte_backend, byte_tokenizer, history_script, ids_of

from piston.core.errors import MisuseError
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.generation import prepare, run, spellings
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.text.tokenizer import Tokenizer

PROMPT = "Q:"


def generate(script, sampling, prompts=(PROMPT,), num_slots=1):
    engine = ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=200)
    generations = prepare([ids_of(prompt) for prompt in prompts], sampling, byte_tokenizer(), [END])
    pieces = {id(generation): "" for generation in generations}
    for generation, piece in run(engine, generations):
        pieces[id(generation)] += piece
    completions = [generation.completion() for generation in generations]
    assert [completion.text for completion in completions] == list(pieces.values())
    assert engine.cache.num_free == num_slots
    return completions


def answer(text, **options):
    (completion,) = generate(answering((ids_of(PROMPT), ids_of(text))), SamplingParams(max_tokens=64, **options))
    return completion


def test_the_text_is_what_was_said_before_the_end_token():
    completion = answer("hello, world")
    assert completion.text == "hello, world"
    assert completion.token_ids == (*ids_of("hello, world"), END)


def test_an_end_token_is_the_stop_reason():
    completion = answer("hello")
    assert (completion.finish_reason, completion.stop_reason) == ("stop", END)


def test_max_tokens_end_by_length_for_no_stop_reason():
    (completion,) = generate(answering((ids_of(PROMPT), ids_of("abcdef"))), SamplingParams(max_tokens=3))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("abc", "length", None)


def test_ignore_eos_goes_on_to_max_tokens():
    completion = answer("ab", ignore_eos=True)
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 64


@pytest.mark.parametrize("stop", ["cd", "bcde", "d", "hellod"])
def test_a_stop_string_across_tokens_ends_the_text_before_it(stop):
    completion = answer("ab hellodxabcdef", stop=stop)
    assert completion.text == "ab hellodxabcdef".partition(stop)[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_a_stop_string_may_begin_inside_a_token():
    completion = answer("say hello there", stop="lo t")
    assert completion.text == "say hel"


def test_a_stop_string_may_end_inside_a_character_of_several_tokens():
    completion = answer("a👍b", stop="👍")
    assert (completion.text, completion.stop_reason) == ("a", "👍")


@pytest.mark.parametrize(
    ("stop", "text", "with_stop"),
    [
        ("<user>", "no", "no<user>"),  # a special token
        ("o<user>h", "n", "no<user>h"),  # a string that contains one
        ("<pad><user>", "no", "no<pad><user>"),
        ("nohe", "", "nohe"),  # what is printed without the special tokens
    ],
)
def test_special_tokens_are_part_of_stop_strings_though_they_are_not_printed(stop, text, with_stop):
    said = "no<pad><user>hello" if "<pad>" in stop else "no<user>hello"
    completion = answer(said, stop=stop)
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (text, "stop", stop)
    assert answer(said, stop=stop, include_stop_str_in_output=True).text == with_stop
    assert answer(said).text == "nohello"


def test_a_stop_string_may_end_with_the_end_token():
    completion = answer("hello no", stop=" no<end>")
    assert (completion.text, completion.stop_reason) == ("hello", " no<end>")


def test_special_tokens_stop_where_transformers_stops():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_backend())
    said = ids_of("no<user>hello<bot>x")
    for stop in ("<user>", "o<user>", "<user>he", "<bot>", "llo<bot>x", "<system>"):
        criteria = transformers.StopStringCriteria(fast, [stop])
        ends = [n for n in range(1, len(said) + 1) if criteria(torch.tensor([said[:n]]), None)[0]]
        completion = answer("no<user>hello<bot>x", stop=stop)
        assert completion.token_ids == tuple(said[: ends[0]] if ends else [*said, END])


SENTENCE_PIECE_LIKE = {
    "metaspace": (None, pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "prepend and strip": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
}


WORDS = ["<unk>", "<s>", "▁The", "▁capital", "▁is", "▁Paris", ",", "▁no", "no", "▁", "\n", *"Tcapitls"]


def sentence_piece_like(kind):
    backend = tokenizers.Tokenizer(models.Unigram([(word, -float(n)) for n, word in enumerate(WORDS)], unk_id=0))
    normalizer, backend.pre_tokenizer, backend.decoder = SENTENCE_PIECE_LIKE[kind]
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(["<s>"])
    return backend


@pytest.mark.parametrize("kind", SENTENCE_PIECE_LIKE)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, " Paris, no"),
        ({"echo": True}, "The capital is Paris, no"),
        ({"stop": " Paris"}, ""),
        ({"stop": ", no"}, " Paris"),
        ({"stop": " Paris", "echo": True}, "The capital is"),
    ],
)
def test_prompt_and_answer_are_one_text(kind, options, expected):
    backend = sentence_piece_like(kind)
    prompt, said = backend.encode("The capital is").ids, backend.encode("Paris, no").ids
    assert backend.decode(prompt + said) == "The capital is Paris, no"
    engine = ScriptedEngine.saying([*said, 1], vocab_size=len(WORDS), prompt_len=len(prompt))
    (generation,) = prepare([prompt], SamplingParams(max_tokens=9, **options), Tokenizer(backend), [1])
    assert "".join(piece for _, piece in run(engine, [generation])) == expected


@pytest.mark.parametrize("kind", SENTENCE_PIECE_LIKE)
def test_a_word_has_its_spelling_after_a_space_and_after_anything_else(kind):
    found = spellings(["no"], Tokenizer(sentence_piece_like(kind)))
    assert sorted(found) == sorted([[WORDS.index("no")], [WORDS.index("▁no")]])


@pytest.mark.parametrize("echo", [True, False])
def test_a_character_that_begins_in_the_prompt_is_written_by_the_answer(echo):
    prompt, said = ids_of("a👍")[:-1], ids_of("👍")[-1:]
    engine = ScriptedEngine.saying([*said, END], vocab_size=VOCAB_SIZE, prompt_len=len(prompt))
    (generation,) = prepare([prompt], SamplingParams(max_tokens=9, echo=echo), byte_tokenizer(), [END])
    assert "".join(piece for _, piece in run(engine, [generation])) == ("a👍" if echo else "👍")


def test_nothing_is_generated_behind_a_stop_string():
    completion = answer("abcdef", stop="cd")
    assert completion.token_ids == tuple(ids_of("abcd"))


def test_the_stop_string_is_kept_on_request():
    completion = answer("abcdef", stop="cd", include_stop_str_in_output=True)
    assert completion.text == "abcd"


def test_what_only_began_like_a_stop_string_is_given_in_the_end():
    assert answer("abc", stop="bcd").text == "abc"


def test_a_stop_token_is_the_stop_reason_and_not_part_of_the_text():
    (stop,) = ids_of("d")
    completion = answer("abcdef", stop_token_ids=[stop])
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("abc", "stop", stop)


def test_a_stop_token_is_kept_on_request():
    completion = answer("abcdef", stop_token_ids=ids_of("d"), include_stop_str_in_output=True)
    assert completion.text == "abcd"


def test_a_stop_string_counts_from_min_tokens_on():
    completion = answer("x.abc.def", stop=".", min_tokens=4)
    assert completion.text == "x.abc"


def test_a_stop_string_that_begins_before_min_tokens_and_ends_behind_counts():
    completion = answer("xabcdef", stop="bcd", min_tokens=4)
    assert (completion.text, completion.stop_reason) == ("xa", "bcd")


def test_a_stop_string_complete_before_min_tokens_is_text_even_inside_the_beginning_of_another():
    completion = answer("xayz", stop=["a", "xayq"], min_tokens=3)
    assert completion.text == "xayz"


def test_min_tokens_hold_the_end_token_back():
    completion = answer("ab", min_tokens=6)
    assert END not in completion.token_ids[:6]
    assert len(completion.token_ids) >= 6


def test_a_stop_string_in_the_very_last_token_beats_the_length():
    (completion,) = generate(answering((ids_of(PROMPT), ids_of("abcd"))), SamplingParams(max_tokens=4, stop="d"))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("abc", "stop", "d")


def test_half_a_character_at_the_end_becomes_one_replacement_character():
    (completion,) = generate(answering((ids_of(PROMPT), ids_of("a👍"))), SamplingParams(max_tokens=3))
    assert completion.text == "a\ufffd"


def test_a_stop_string_ends_its_row_while_others_go_on():
    script = answering((ids_of("A:"), ids_of("one. two")), (ids_of("B:"), ids_of("three and four")))
    first, second = generate(script, SamplingParams(max_tokens=64, stop="."), ["A:", "B:"], num_slots=2)
    assert (first.text, first.stop_reason) == ("one", ".")
    assert (second.text, second.stop_reason) == ("three and four", END)


@pytest.mark.parametrize("stop", [(), (".",)])
def test_echo_begins_the_text_with_the_prompt(stop):
    assert answer("hello", echo=True, stop=stop).text == "Q:hello"


def test_a_stop_string_in_the_echoed_prompt_does_not_stop():
    completion = answer("hello", echo=True, stop=":")
    assert completion.text == "Q:hello"


def test_there_are_no_logprobs_unless_asked_for():
    assert answer("ab").logprobs is None


def test_each_token_has_its_logprob():
    completion = answer("hello no", logprobs=True)
    assert [position.chosen.token_id for position in completion.logprobs] == list(completion.token_ids)
    assert all(-0.2 < position.chosen.logprob <= 0 for position in completion.logprobs)


def test_the_likeliest_tokens_come_best_first():
    completion = answer("ab", logprobs=True, top_logprobs=3)
    for position in completion.logprobs:
        logprobs = [token.logprob for token in position.top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert len(logprobs) == 3
        assert position.top[0] == position.chosen


def test_the_bytes_of_logprobs_join_to_characters():
    completion = answer("né 👍 no", logprobs=True)
    assert b"".join(position.chosen.bytes_ for position in completion.logprobs[:-1]).decode() == "né 👍 no"


def test_logprobs_name_tokens_as_the_vocabulary_spells_them():
    completion = answer(" no", logprobs=True)
    (first, *_) = completion.logprobs
    assert (first.chosen.token, first.chosen.bytes_) == ("Ġno", b" no")


def test_answers_that_share_a_seed_differ():
    completions = generate(history_script(), SamplingParams(max_tokens=8, n=4, temperature=1.0, seed=5), num_slots=2)
    assert len({completion.token_ids for completion in completions}) == 4


@pytest.mark.parametrize("num_slots", [1, 2, 4])
def test_answers_that_share_a_seed_reproduce_whatever_the_number_of_slots(num_slots):
    sampling = SamplingParams(max_tokens=8, n=4, temperature=1.0, seed=5)
    rows = [row.token_ids for row in generate(history_script(), sampling, ["A:", "BB:"], num_slots=num_slots)]
    assert rows == [row.token_ids for row in generate(history_script(), sampling, ["A:", "BB:"], num_slots=3)]


def test_answers_come_prompt_by_prompt():
    sampling = SamplingParams(max_tokens=1, n=2, temperature=0.01, seed=0)
    script = answering((ids_of("A:"), ids_of("x")), (ids_of("B:"), ids_of("y")))
    assert [row.text for row in generate(script, sampling, ["A:", "B:"], num_slots=3)] == ["x", "x", "y", "y"]


def test_a_completion_tells_a_seed_that_repeats_it():
    (first,) = generate(history_script(), SamplingParams(max_tokens=8, temperature=1.0))
    (again,) = generate(history_script(), SamplingParams(max_tokens=8, temperature=1.0, seed=first.seed))
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("said", ["no", " no"])
def test_a_bad_word_is_forbidden_with_and_without_a_leading_space(said):
    assert said not in answer(f"I say{said} more", bad_words="no").text


def test_a_bad_word_of_several_tokens_is_forbidden():
    assert "quick" not in answer("a quick fox", bad_words="quick").text


def test_both_spellings_of_a_word_are_found():
    assert sorted(spellings(["no"], byte_tokenizer())) == sorted([ids_of("no"), ids_of(" no")])


def test_a_word_written_with_a_space_is_spelled_without_it_too():
    assert sorted(spellings([" no"], byte_tokenizer())) == sorted([ids_of("no"), ids_of(" no")])


def test_a_word_of_spaces_is_itself():
    assert ids_of(" ") in spellings([" "], byte_tokenizer())


def test_a_spelling_is_listed_once():
    assert len(spellings(["no", " no", "no"], byte_tokenizer())) == 2


def test_counts_and_timings_are_of_the_row():
    completion = answer("abc")
    assert (completion.num_prompt_tokens, completion.num_prefilled_tokens) == (2, 2)
    assert completion.timings.num_tokens == 4
    assert 0 <= completion.timings.time_to_first_token <= completion.timings.total


def test_an_interrupted_row_has_no_finish_reason():
    engine = ScriptedEngine(history_script(), vocab_size=VOCAB_SIZE)
    (generation,) = prepare([ids_of("ab")], SamplingParams(max_tokens=5), byte_tokenizer(), [END])
    for _ in itertools.islice(run(engine, [generation]), 2):
        pass
    completion = generation.completion()
    assert (len(completion.token_ids), completion.finish_reason, completion.stop_reason) == (2, None, None)


def test_an_error_while_text_is_made_gives_the_slots_back(monkeypatch):
    engine = ScriptedEngine(history_script(), vocab_size=VOCAB_SIZE)
    (generation,) = prepare([ids_of("ab")], SamplingParams(max_tokens=5), byte_tokenizer(), [END])
    monkeypatch.setattr(type(generation), "push", lambda *_: spellings(None, None))
    with pytest.raises(TypeError) as problem:
        list(run(engine, [generation]))
    assert engine.cache.num_free == 1, problem  # while the traceback is still held


def test_options_that_leave_no_token_are_told_and_give_the_slot_back():
    engine = ScriptedEngine(history_script(8), vocab_size=8)
    sampling = SamplingParams(max_tokens=8, no_repeat_ngram_size=1)
    (generation,) = prepare([[3]], sampling, byte_tokenizer(), [])
    with pytest.raises(MisuseError, match="leave none to pick"):
        list(run(engine, [generation]))
    assert engine.cache.num_free == 1


def test_an_engine_that_does_not_verify_exactly_is_named_in_the_completion():
    class Rounding(ScriptedEngine):
        def prefill(self, slot, token_ids, num_logits=1):
            return super().prefill(slot, token_ids, num_logits) + (len(token_ids) > 1) * np.float32(2**-10)

    engine = Rounding(history_script(), vocab_size=VOCAB_SIZE, capacity=200)
    prompt = ids_of("one two one two one two")
    (generation,) = prepare([prompt], SamplingParams(max_tokens=9, prompt_lookup_num_tokens=5), byte_tokenizer(), [END])
    list(run(engine, [generation]))
    drafts = generation.completion().drafts
    assert (drafts.num_drafted, "rounds" in drafts.problem) == (0, True)


def test_a_special_token_is_text_where_it_is_to_be_shown():
    engine = ScriptedEngine.saying([USER, *ids_of("no"), END], vocab_size=VOCAB_SIZE, prompt_len=1)
    texts = []
    for shown in (frozenset(), frozenset([USER])):
        (generation,) = prepare([[BOT]], SamplingParams(max_tokens=9), byte_tokenizer(), [END])
        generation.shown_ids = shown
        texts.append("".join(piece for _, piece in run(engine, [generation])))
    assert texts == ["no", "<user>no"]


def test_logprobs_with_echo_begin_with_the_prompt():
    prompt = ids_of("hello no")
    engine = ScriptedEngine.saying([END], vocab_size=VOCAB_SIZE, prompt_len=len(prompt))
    (generation,) = prepare([prompt], SamplingParams(max_tokens=3, echo=True, logprobs=True), byte_tokenizer(), [END])
    for _ in run(engine, [generation]):
        pass
    found = generation.completion().prompt_logprobs
    assert [position.chosen.token_id for position in found] == prompt[1:]
    (plain,) = prepare([prompt], SamplingParams(logprobs=True), byte_tokenizer(), [END])
    assert plain.completion().prompt_logprobs is None
