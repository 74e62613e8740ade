import dataclasses
import tracemalloc

import numpy as np
import pytest
from speech import RATE, write_sound
from toy_model import VOCAB_SIZE, manifest_of, write_bundle

from piston.bench.works import is_measured
from piston.runtime.audio.made_sounds import PIECE, made_voice, write_voice
from piston.runtime.audio.reading import read_audio

TEXT_TO_TEXT, SPEECH = "text2text-generation", "automatic-speech-recognition"
FEATURES = {"feature_size": 80, "sampling_rate": RATE, "n_fft": 400, "hop_length": 160, "chunk_length": 30}
TOKENS = {"start": 1, "end": 2, "no_timestamps": 3}  # a prompt of two tokens: the start, no timestamps


@pytest.fixture
def works(monkeypatch, tmp_path, piston):
    """works(task, *words) -> what the options come to, without measuring: a list of Work, or the error."""
    from piston.bench import cli

    def of(task, *words, **changes):
        seen = []

        def measure(_contenders, found, *_):
            seen.extend(found)
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "measure", measure)
        write_bundle(tmp_path / "bundle", task=task, settings={"features": FEATURES, "speech": TOKENS}, **changes)
        result = piston("bench", tmp_path / "bundle", "--quiet", *words)
        return seen or result.err

    return of


def test_a_translator_is_measured_on_sources_and_with_beams(works):
    found = works(TEXT_TO_TEXT, "--prompt-len", "16", "--gen-len", "8", "--batch", "2", "--num-beams", "1,4")
    assert [work.setting.name for work in found] == [
        "batch 2, prompt 16, 8 tokens",
        "batch 2, 4 beams, prompt 16, 8 tokens",
    ]
    assert [(work.setting.num_positions, work.setting.num_slots) for work in found] == [(16, 2), (16, 8)]
    rows = found[0].rows(0)
    assert {len(row) for row in rows} == {16}
    assert max(map(max, rows)) < VOCAB_SIZE


def test_source_and_answer_of_a_translator_need_positions_apart(works):
    (work,) = works(TEXT_TO_TEXT, "--prompt-len", "90", "--gen-len", "90")  # of 96
    assert work.setting.num_positions == 91
    assert "the model has 96" in works(TEXT_TO_TEXT, "--prompt-len", "8", "--gen-len", "96")


@pytest.mark.parametrize(
    ("task", "words", "needed"),
    [
        ("text-generation", ("--prompt-len", "32", "--gen-len", "29"), 61),
        (TEXT_TO_TEXT, ("--prompt-len", "8", "--gen-len", "60"), 61),
        (SPEECH, ("--audio-len", "1", "--gen-len", "59"), 61),
    ],
)
def test_what_the_engine_was_built_for_is_the_limit_and_not_what_the_model_has(works, tmp_path, task, words, needed):
    (spec,) = manifest_of().engines
    short = (dataclasses.replace(spec, actual={"max_positions": 60}),)
    said = works(task, *words, engines=short)
    assert f"needs {needed} positions; bundle has 60" in said
    assert "or build the bundle with a larger --max-length" in said
    *rest, last = words
    assert isinstance(works(task, *rest, str(int(last) - 1), engines=short), list)
    write_bundle(tmp_path / "short", task=task, settings={"features": FEATURES, "speech": TOKENS}, engines=short)
    assert "short has 60" in works(task, *words, "--against", f"piston:{tmp_path / 'short'}")


def test_made_sounds_have_the_length_that_was_asked_for(works, monkeypatch):
    from piston.bench import works as module

    written = []
    monkeypatch.setattr(module, "write_voice", lambda path, seconds, rate: written.append((path.name, seconds, rate)))
    found = works(SPEECH, "--audio-len", "10,2.5", "--gen-len", "20")
    assert [work.setting.name for work in found] == [
        "10 s of audio, 20 tokens a window",
        "2.5 s of audio, 20 tokens a window",
    ]
    assert written == [("sound-0.wav", 10.0, RATE), ("sound-1.wav", 2.5, RATE)]
    assert found[0].rows(0) == found[0].rows(5)


def test_made_sounds_differ_by_a_millisecond_or_are_one(works, monkeypatch):
    from piston.bench import works as module

    written = []
    monkeypatch.setattr(module, "write_voice", lambda path, seconds, rate: written.append((path.name, seconds, rate)))
    found = works(SPEECH, "--audio-len", "30,30.0000001,1234.567,1234.568", "--gen-len", "4,5")
    assert [work.setting.name for work in found[::2]] == [
        "30 s of audio, 4 tokens a window",
        "1234.567 s of audio, 4 tokens a window",
        "1234.568 s of audio, 4 tokens a window",
    ]
    assert len({setting.name for setting in (work.setting for work in found)}) == len(found) == 6
    assert written == [
        (f"sound-{number}.wav", seconds, RATE) for number, seconds in enumerate((30, 1234.567, 1234.568))
    ]


def test_one_token_a_window_has_a_speed_and_one_token_of_a_text_has_none(works):
    words = ("--gen-len", "1", "--require", "decode>=1tokens/s")
    (work,) = works(SPEECH, "--audio-len", "1", *words)
    assert work.setting.gen_len == 1
    assert "'decode>=1tokens/s' needs a second token; raise --gen-len" in works(
        "text-generation", "--prompt-len", "8", *words
    )


def test_sounds_of_a_list_follow_one_another_and_say_what_they_say(works, tmp_path):
    for name, seconds in (("a.wav", 1.0), ("b.wav", 3.0)):
        write_sound(tmp_path / name, seconds)
    (tmp_path / "clips.txt").write_text("a.wav\nb.wav\n")
    (work,) = works(SPEECH, "--prompts", tmp_path / "clips.txt")
    assert (work.setting.audio, work.setting.gen_len, work.setting.name) == (3.0, 0, "3 s of audio")
    assert [row for index in range(3) for (row,) in work.rows(index)] == [
        str(tmp_path / name) for name in ("a.wav", "b.wav", "a.wav")
    ]


@pytest.mark.parametrize(
    ("task", "words", "reason"),
    [
        (SPEECH, ["--batch", "2"], "--batch is not for automatic-speech-recognition; leave it out."),
        (SPEECH, ["--prompt-len", "8"], "--prompt-len is not for"),
        (SPEECH, ["--num-beams", "4"], "--num-beams is not for"),
        (SPEECH, ["--audio-len", "0"], "write seconds such as 30 or 10,60"),
        (SPEECH, ["--audio-len", "x"], "write seconds such as 30 or 10,60"),
        (SPEECH, ["--gen-len", "95", "--audio-len", "1"], "needs 97 positions; the model has 96"),
        (SPEECH, ["--gen-len", "0"], "--gen-len is 0; every number must be at least 1"),
        (SPEECH, ["--prompts", "a.wav", "--audio-len", "3"], "leave out --audio-len and --gen-len"),
        (SPEECH, ["--profile"], "--profile is for language models"),
        (
            SPEECH,
            ["--gen-len", "8", "--require", "ttft<=1s"],
            "is not measured of automatic-speech-recognition; its figures",
        ),
        (TEXT_TO_TEXT, ["--prompt-len", "8", "--audio-len", "3"], "--audio-len is not for text2text-generation"),
        (
            TEXT_TO_TEXT,
            ["--prompt-len", "8", "--num-beams", "0"],
            "--num-beams must be a list of numbers of at least 1",
        ),
        (TEXT_TO_TEXT, ["--prompt-len", "8", "--require", "rtf<=1"], "is not measured of text2text-generation"),
        (TEXT_TO_TEXT, ["--prompt-len", "8", "--against", "transformers:."], "of text2text-generation only bundles"),
        (
            "text-generation",
            ["--prompt-len", "8", "--gen-len", "8", "--require", "encode<=1s"],
            "its figures are ttft, tpot",
        ),
    ],
)
def test_what_is_not_of_the_task_is_refused_before_anything_is_measured(works, task, words, reason):
    found = works(task, *words)
    assert isinstance(found, str)
    assert reason in found


def test_bundles_of_different_tasks_are_not_compared(works, tmp_path):
    write_bundle(tmp_path / "other")
    found = works(TEXT_TO_TEXT, "--prompt-len", "8", "--against", f"piston:{tmp_path / 'other'}")
    assert "other is for text-generation, and a model for text2text-generation is needed here" in found


def test_every_task_of_a_bundle_is_measured():
    assert all(map(is_measured, ["text-generation", TEXT_TO_TEXT, SPEECH, "module", "text-ranking"]))
    assert not is_measured("image-to-text")


@pytest.mark.parametrize("seconds", [1.25, 60.001])
def test_a_made_sound_is_heard_as_long_as_it_was_made(tmp_path, seconds):
    write_voice(tmp_path / "v.wav", seconds, RATE)
    assert sum(map(len, read_audio(tmp_path / "v.wav", RATE))) == int(seconds * RATE)


def test_a_long_sound_is_made_piece_by_piece_and_says_other_things_in_each(tmp_path):
    tracemalloc.start()
    write_voice(tmp_path / "v.wav", 5 * PIECE, RATE)
    assert (
        tracemalloc.get_traced_memory()[1] < 4 * PIECE * RATE * 8 * 8
    )  # all at once are more than 20 arrays of float64
    tracemalloc.stop()
    pieces = np.concatenate(list(read_audio(tmp_path / "v.wav", RATE))).reshape(5, -1)
    for seed, piece in enumerate(pieces):
        np.testing.assert_allclose(piece, made_voice(PIECE, RATE, seed), atol=1 / 32767)
    assert np.abs(pieces[0] - pieces[1]).max() > 0.1
