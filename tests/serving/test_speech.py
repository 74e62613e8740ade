"""/v1/audio over a recognizer that says what is written, without an engine."""

import io
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec
from piston.core.errors import MisuseError
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.reading import read_audio
from piston.runtime.audio.transcribe_options import SpeechTokens, TranscribeOptions
from piston.runtime.audio.transcription import Segment
from piston.runtime.audio.voice_activity import VadOptions
from piston.runtime.sampling.beam_params import BeamParams
from piston.serving.app import Server
from piston.serving.engine_thread import FAILURES
from piston.serving.settings import Settings


def wav(seconds=1.0, rate=16_000):
    samples = (np.sin(np.arange(int(seconds * rate)) / 9) * 9000).astype("<i2").tobytes()
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    )
    return header + b"data" + struct.pack("<I", len(samples)) + samples


class Said:
    """Gives a segment for each second of the audio, after `steps` steps that take `pause` seconds together."""

    tokenizer = None

    def __init__(self, pause=0.0, steps=1):
        self.manifest = Manifest(
            kind="bundle",
            task="automatic-speech-recognition",
            model=ModelSpec(
                name="toy",
                architecture="W",
                num_layers=1,
                hidden_size=1,
                vocab_size=9,
                max_positions=9,
                dtype="float32",
            ),
            graphs={},
            tokenizer=TokenizerSpec(),
            files={},
        )
        self.tokens = SpeechTokens(
            start=1, end=2, no_timestamps=3, languages={"de": 4, "en": 5}, tasks={"transcribe": 6, "translate": 7}
        )
        self.features = LogMel(num_mels=8)
        self.languages, self.target = ("de", "en"), "toy"
        self.pause, self.steps, self.given, self.num_said = pause, steps, [], 0

    def stream(self, audio, *, initial_prompt=None, on_step=lambda: None, **options):
        self.given.append({"initial_prompt": initial_prompt, **options})
        TranscribeOptions(**options)
        seconds = sum(map(len, read_audio(audio, 16_000))) / 16_000
        return Stream(self, seconds, options.get("language", "en"), on_step)

    def close(self):
        """Nothing is held."""


class Stream:
    def __init__(self, model, seconds, language, on_step):
        self.model, self.duration, self.language, self.at = model, seconds, language, 0
        self.on_step = on_step

    def __iter__(self):
        return self

    def __next__(self):
        if self.at >= self.duration:
            raise StopIteration
        for _ in range(self.model.steps):
            self.on_step()
            time.sleep(self.model.pause / self.model.steps)
        self.at += 1
        self.model.num_said += 1
        return Segment(
            start=self.at - 1.0,
            end=float(self.at),
            text=f" word {self.at}",
            token_ids=(8,),
            avg_logprob=-0.5,
            no_speech_prob=0.0,
            temperature=0.0,
            compression_ratio=1.0,
        )

    def close(self):
        """Nothing is held."""


@pytest.fixture
def server(live):
    model = Said()
    running = live(None, models=[("speech", model)])
    running.model = model
    return running


def create(server, **fields):
    given = {"model": "speech", "file": ("a.wav", io.BytesIO(wav(2.0)))} | fields
    return server.client.audio.transcriptions.create(**given)


def test_the_text_of_a_file_comes_back_to_the_official_client(server):
    assert create(server).text == "word 1 word 2"


def test_options_reach_the_recognizer(server):
    create(server, language="de", prompt="Names", temperature=0.5)
    assert server.model.given[-1] == {"initial_prompt": "Names", "language": "de", "temperatures": (0.5,)}
    create(server, extra_body={"vad_filter": True})
    assert server.model.given[-1] == {"initial_prompt": None, "vad": VadOptions()}
    beams = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": "true"}
    create(server, extra_body=beams)
    found = BeamParams(num_beams=3, length_penalty=0.5, early_stopping=True)
    assert server.model.given[-1] == {"initial_prompt": None, "beams": found}
    create(server, temperature=0)
    assert server.model.given[-1] == {"initial_prompt": None}


@pytest.mark.parametrize(
    ("form", "begins"),
    [("text", "word 1 word 2\n"), ("srt", "1\n00:00:00,000 --> 00:00:01,000\nword 1\n"), ("vtt", "WEBVTT\n")],
)
def test_formats_of_text_are_text(server, form, begins):
    assert create(server, response_format=form).startswith(begins)


def test_verbose_json_has_segments_language_and_duration(server):
    found = create(server, response_format="verbose_json", language="de", timestamp_granularities=["segment"])
    assert (found.language, found.duration, [segment.text for segment in found.segments]) == (
        "de",
        2.0,
        [" word 1", " word 2"],
    )
    assert [(segment.start, segment.end) for segment in found.segments] == [(0, 1), (1, 2)]


def test_segments_are_streamed_as_events(server):
    events = list(create(server, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:2]).strip() == events[-1].text == "word 1 word 2"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by the openai client
def test_translations_are_into_english(server):
    file = ("a.wav", io.BytesIO(wav()))
    assert server.client.audio.translations.create(model="speech", file=file).text == "word 1"
    assert server.model.given[-1]["task"] == "translate"
    fields = {"model": "speech", "file": ("a.wav", io.BytesIO(wav())), "response_format": "verbose_json"}
    assert server.client.audio.translations.create(**fields).task == "translate"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file": ("a.wav", b"no audio at all")}, "no audio that can be read"),
        ({"language": "xx"}, "the model knows: de, en"),
        ({"timestamp_granularities": ["letter"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["word"]}, "ask for verbose_json"),
        ({"response_format": "srt", "stream": True}, "does not go with it"),
        ({"include": ["logprobs"]}, "include is not supported"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": 0.5, "extra_body": {"num_beams": 2}}, "beams are for temperature 0"),
        ({"extra_body": {"length_penalty": 2}}, "length_penalty is for beam search; send num_beams"),
    ],
)
def test_what_cannot_be_done_is_refused_with_400(server, fields, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        create(server, **fields)


def test_an_audio_that_does_not_finish_in_time_ends_with_504(server):
    server.model.pause = 0.2
    with pytest.raises(openai.APIStatusError, match="X-Request-Timeout") as refused:
        create(server, file=("a.wav", io.BytesIO(wav(30.0))), extra_headers={"X-Request-Timeout": "0.5"})
    assert (refused.value.status_code, server.model.num_said < 10) == (504, True)


def test_deadlines_that_pass_do_not_count_as_failures_of_the_engine(server):
    server.model.pause = 0.05
    for _ in range(FAILURES):
        with pytest.raises(openai.APIStatusError, match="X-Request-Timeout"):
            create(server, extra_headers={"X-Request-Timeout": "0.01"})
    assert server.thread("speech").problem() is None


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_in_the_middle_of_a_segment_is_noticed_at_the_next_step(live, is_streamed):
    model = Said(pause=20.0, steps=1000)  # a segment takes 20 seconds
    running = live(None, models=[("speech", model)])
    with pytest.raises(openai.APITimeoutError):
        create(running, stream=is_streamed, timeout=0.5)
    wait_until(lambda: running.thread("speech").num_open == 0)
    assert model.num_said == 0
    reasons = [line for line in running.request("GET", "/metrics")[2].decode().splitlines() if "success" in line]
    assert any('finished_reason="abort"' in line and line.endswith(" 1.0") for line in reasons)


def test_a_server_that_ends_does_not_wait_for_the_end_of_a_segment(live):
    running = live(None, models=[("speech", Said(pause=20.0, steps=1000))])
    thread = running.thread("speech")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(create, running)
        wait_until(lambda: thread.num_running == 1)
        began = time.monotonic()
        thread.stop()
        assert time.monotonic() - began < 5
        with pytest.raises(openai.APIStatusError, match="shut down before this request was finished"):
            asked.result()


def wait_until(holds, seconds=5.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_without_a_queue_one_audio_is_answered_at_a_time(live):
    running = live(None, models=[("speech", Said())], settings={"max_queue_requests": 0})
    assert create(running).text == "word 1 word 2"
    running.thread("speech")._num_open = 1  # an audio that is transcribed
    with pytest.raises(openai.RateLimitError):
        create(running)


def test_tokens_of_a_queue_of_audios_are_refused():
    with pytest.raises(MisuseError, match="--max-queue-tokens bounds tokens of prompts, and the audios of speech"):
        Server([("speech", Said())], Settings(max_queue_tokens=100))


def test_a_form_without_a_file_and_one_that_is_damaged_are_refused(server):
    status, answer = server.post("/v1/audio/transcriptions", {"model": "speech"})
    assert (status, "file" in answer["error"]["message"]) == (400, True)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert server.request("POST", "/v1/audio/transcriptions", b"--y\r\nnothing", headers)[0] == 400


@pytest.mark.parametrize(
    ("prompt", "charset", "status"),
    [
        ("Grüße".encode(), "utf-8", 200),
        ("Grüße".encode("latin-1"), "utf-8", 400),
        (b"\xe9", "utf-8", 400),  # in UTF-8 two bytes, which the audio has by chance
        ("Grüße".encode("latin-1"), "latin-1", 400),
    ],
)
def test_text_of_a_form_must_be_utf_8(server, prompt, charset, status):
    parts = [
        b'Content-Disposition: form-data; name="model"\r\n\r\nspeech',
        b'Content-Disposition: form-data; name="prompt"\r\n\r\n' + prompt,
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav() + "é".encode(),
    ]
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    found, _, answer = server.request("POST", "/v1/audio/transcriptions", body, headers)
    assert found == status
    if status == 200:
        assert server.model.given[-1]["initial_prompt"] == "Grüße"
    else:
        assert json.loads(answer)["error"]["message"] == "prompt of the form is not UTF-8; encode it so."


def test_texts_are_refused_by_the_task_that_the_bundle_has(server):
    with pytest.raises(openai.APIStatusError, match="automatic-speech-recognition"):
        server.client.chat.completions.create(model="speech", messages=[{"role": "user", "content": "hello"}])
