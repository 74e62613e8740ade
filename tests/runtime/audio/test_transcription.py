from piston.runtime.audio.transcription import Segment, Transcription, Word, joined, to_srt, to_vtt


def segment(start, end, text, words=()):
    return Segment(
        start=start,
        end=end,
        text=text,
        token_ids=(1, 2),
        avg_logprob=-0.5,
        no_speech_prob=0.1,
        temperature=0.0,
        compression_ratio=1.0,
        words=words,
    )


SEGMENTS = (segment(0.0, 1.5, " Hello <you> & me."), segment(3661.0005, 3662.9996, " A\n\nB --> C"))


def test_srt_numbers_blocks_and_writes_hours_and_thousandths():
    assert "".join(to_srt(SEGMENTS)) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello <you> & me.\n\n2\n01:01:01,000 --> 01:01:03,000\nA\nB -> C\n\n"
    )


def test_vtt_has_its_header_and_escapes_markup():
    assert "".join(to_vtt(SEGMENTS)).startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello &lt;you&gt; &amp; me.\n\n"
    )


def test_json_has_the_names_of_verbose_json():
    word = Word(text=" Hello", start=0.0, end=0.5, probability=0.9)
    result = Transcription(text="Hello", language="en", segments=(segment(0.0, 1.0, " Hello", (word,)),), duration=1.0)
    found = result.to_json()
    assert set(found) == {"text", "language", "duration", "segments", "words"}
    assert {"id", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio"} <= set(
        found["segments"][0]
    )
    assert found["segments"][0]["words"] == found["words"] == [{"word": " Hello", "start": 0.0, "end": 0.5}]
    plain = Transcription(text="Hello", language="en", segments=(segment(0.0, 1.0, " Hello"),), duration=1.0)
    assert "words" not in plain.to_json()


def test_the_text_is_that_of_all_segments():
    assert joined(SEGMENTS[:1] * 2) == "Hello <you> & me. Hello <you> & me."
