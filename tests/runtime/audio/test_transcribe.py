import numpy as np
import pytest

from piston.core.errors import MisuseError
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.transcribe import Decoded, transcribe
from piston.runtime.audio.transcribe_options import SpeechTokens, TranscribeOptions, prompt_of
from piston.runtime.audio.windows import MelWindows

FIRST = 101
TOKENS = SpeechTokens(
    start=91,
    end=90,
    no_timestamps=100,
    previous=92,
    languages={"en": 93, "de": 94},
    tasks={"transcribe": 95, "translate": 96},
)


def stamp(seconds):
    return FIRST + round(seconds / 0.02)


class Script:
    """A Decoder that says what is written for each call: tokens, mean log probability, probability of no speech."""

    def __init__(self, *said):
        self.said, self.calls, self.windows = list(said), [], []

    def detect_language(self, window):
        return "de"

    def decode(self, window, prompt_ids, *, temperature, constraint):
        self.calls.append((list(prompt_ids), temperature, constraint is not None))
        self.windows.append(window)
        ids, avg, no_speech = self.said.pop(0)
        return Decoded(tuple(ids), (avg,) * (len(ids) + 1), no_speech)

    def token_ends(self, window, prompt_ids, token_ids, frames):
        return np.arange(1, len(token_ids) + 1) / 2

    def text(self, token_ids):
        return "".join(f" w{token}" for token in token_ids if token < TOKENS.end)


def windows(seconds, loudness=0.1):
    samples = (np.random.default_rng(0).standard_normal(int(16_000 * seconds)) * loudness).astype(np.float32)
    return MelWindows(lambda: iter([samples]), LogMel(num_mels=80))


def texts(segments):
    return [(segment.start, segment.end, segment.text) for segment in segments]


def test_windows_follow_one_another_from_the_last_whole_segment():
    script = Script(
        ([stamp(0), 1, stamp(20), stamp(20), 2], -0.1, 0.0),
        ([stamp(0), 2, stamp(12), stamp(12), 3, stamp(25)], -0.1, 0.0),
    )
    found = list(transcribe(windows(50), script, TOKENS, TranscribeOptions(language="en")))
    assert texts(found) == [(0, 20, " w1"), (20, 32, " w2"), (32, 45, " w3")]
    assert script.calls[0][0] == [91, 93, 95]


def test_the_language_is_detected_once():
    script = Script(([stamp(0), 1, stamp(2)], -0.1, 0.0))
    list(transcribe(windows(5), script, TOKENS, TranscribeOptions()))
    assert script.calls[0][0] == [91, 94, 95]


def test_repetition_and_improbable_text_are_decoded_again_warmer():
    script = Script(
        ([stamp(0), *[7] * 80, stamp(3)], -0.1, 0.0),
        ([stamp(0), 8, stamp(3)], -1.5, 0.0),
        ([stamp(0), 9, stamp(3)], -0.5, 0.0),
    )
    found = list(transcribe(windows(5), script, TOKENS, TranscribeOptions(language="en")))
    assert [(segment.text, segment.temperature) for segment in found] == [(" w9", 0.4)]
    assert [call[1] for call in script.calls] == [0.0, 0.2, 0.4]


def test_a_window_where_nobody_speaks_gives_nothing():
    script = Script(([stamp(0), 1, stamp(2)], -1.5, 0.9))
    assert list(transcribe(windows(5), script, TOKENS, TranscribeOptions(language="en"))) == []


def test_digital_silence_is_not_even_decoded():
    script = Script()
    assert list(transcribe(windows(40, loudness=0.0), script, TOKENS, TranscribeOptions())) == []
    assert script.calls == []


def test_only_clips_are_read_each_from_its_start():
    script = Script(
        ([stamp(0), 1, stamp(2)], -0.1, 0.0),
        ([stamp(0), 2, stamp(20), stamp(20)], -0.1, 0.0),
        ([stamp(0), 3, stamp(12)], -0.1, 0.0),
    )
    heard, clips = windows(80), [(3.0, 5.5), (40.0, 75.0)]
    found = list(transcribe(heard, script, TOKENS, TranscribeOptions(language="en"), clips=clips))
    assert texts(found) == [(3, 5, " w1"), (40, 60, " w2"), (60, 72, " w3")]
    whole = windows(80)
    for window, (start, frames) in zip(script.windows, [(300, 250), (4000, 3000), (6000, 1500)], strict=True):
        expected, _ = whole.at(start)
        np.testing.assert_array_equal(window[:, :, :frames], expected[:, :, :frames])
        assert not window[:, :, frames:].any()


def test_without_a_clip_nothing_is_read():
    assert list(transcribe(windows(5), script := Script(), TOKENS, TranscribeOptions(), clips=[])) == []
    assert script.calls == []


def test_text_behind_the_end_of_the_audio_is_left_out():
    script = Script(([stamp(0), 1, stamp(2), stamp(2), 2, stamp(9), stamp(9), 3, stamp(12)], -0.1, 0.0))
    found = list(transcribe(windows(5), script, TOKENS, TranscribeOptions(language="en")))
    assert [segment.text for segment in found] == [" w1", " w2"]


def test_former_text_is_given_to_the_decoder_on_request():
    said = [([stamp(0), 1, stamp(29), stamp(29), 2], -0.1, 0.0), ([stamp(0), 2, stamp(2)], -0.1, 0.0)]
    options = TranscribeOptions(language="en", initial_prompt=(5, 6), condition_on_previous=True)
    script = Script(*said)
    list(transcribe(windows(40), script, TOKENS, options))
    assert [call[0] for call in script.calls] == [
        [92, 5, 6, 91, 93, 95],
        [92, 5, 6, stamp(0), 1, stamp(29), 91, 93, 95],
    ]
    script = Script(*said)
    list(transcribe(windows(40), script, TOKENS, TranscribeOptions(language="en")))
    assert script.calls[1][0] == [91, 93, 95]


def test_without_timestamps_one_window_is_read_and_more_are_refused():
    options = TranscribeOptions(language="en", timestamps=False)
    script = Script(([1, 2], -0.1, 0.0))
    assert texts(transcribe(windows(4), script, TOKENS, options)) == [(0, 30, " w1 w2")]
    assert script.calls[0] == ([91, 93, 95, 100], 0.0, False)
    with pytest.raises(MisuseError, match="timestamps"):
        list(transcribe(windows(31), Script(), TOKENS, options))


def test_words_begin_where_the_token_before_them_ends_and_times_are_of_the_whole_audio():
    script = Script(
        ([stamp(0), 1, stamp(29), stamp(29), 2], -0.1, 0.0),
        ([stamp(0), 5, 6, stamp(3)], -0.1, 0.0),
    )
    options = TranscribeOptions(language="en", word_timestamps=True)
    segments = list(transcribe(windows(40), script, TOKENS, options))
    # Tokens end half a second apart; the second window begins at 29 s, its first token is a timestamp.
    assert [(word.text, word.start, word.end) for word in segments[1].words] == [
        (" w5", 29.5, 30.0),
        (" w6", 30.0, 30.5),
    ]
    assert segments[0].words[0].probability == pytest.approx(np.exp(-0.1))


def test_progress_ends_at_the_whole_length():
    seen = []
    script = Script(([stamp(0), 1, stamp(2)], -0.1, 0.0))
    list(transcribe(windows(5), script, TOKENS, TranscribeOptions(), lambda *done: seen.append(done)))
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize(
    ("tokens", "options", "reason"),
    [
        (TOKENS, {"language": "xx"}, "it knows: de, en"),
        (TOKENS, {"language": "en", "task": "sing"}, "transcribe, translate"),
        (SpeechTokens(start=1, end=2, no_timestamps=3), {"task": "translate"}, "English"),
        (SpeechTokens(start=1, end=2, no_timestamps=3), {"language": "de"}, "English"),
        (SpeechTokens(start=1, end=2, no_timestamps=3), {"initial_prompt": (4,)}, "no prompt"),
    ],
)
def test_what_the_checkpoint_lacks_is_refused(tokens, options, reason):
    options = TranscribeOptions(**options)
    with pytest.raises(MisuseError, match=reason):
        prompt_of(tokens, options, options.language, [])
