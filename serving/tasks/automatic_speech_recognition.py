"""Speech recognition: /v1/audio/transcriptions and /v1/audio/translations."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from piston.runtime.audio.transcription import Segment, Transcription, joined, to_srt, to_vtt
from piston.runtime.audio.voice_activity import VadOptions
from piston.serving.batch_thread import BatchThread, BatchTicket
from piston.serving.beams import SearchFields, search_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import UNFINISHED, DeadlineError, RequestError, ShuttingDownError, request_error
from piston.serving.event_stream import DONE, ClientLeftError, event, send_events, until_left
from piston.serving.fields import Json, Meta, Refused
from piston.serving.one_at_a_time import OneAtATime

if TYPE_CHECKING:
    from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]


class TranslationRequest(SearchFields, kw_only=True):
    """/v1/audio/translations, a form with a file."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    file: Annotated[bytes, Meta(description="the audio: WAV, or anything that FFmpeg reads with piston[audio]")]
    prompt: Annotated[str | UnsetType, Meta(description="text that sets style and spelling")] = UNSET
    response_format: Format = "json"
    temperature: (
        Annotated[float, Meta(ge=0, le=2, description="of the only try; without it 0, then warmer where that fails")]
        | UnsetType
    ) = UNSET
    vad_filter: Annotated[
        bool, Meta(description="only where somebody speaks is read, as Silero's network finds it (needs silero-vad)")
    ] = False
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    metadata: Annotated[Json | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET


class TranscriptionRequest(TranslationRequest, kw_only=True):
    """/v1/audio/transcriptions, a form with a file."""

    language: Annotated[str | UnsetType, Meta(description="its code; detected where it is left out")] = UNSET
    timestamp_granularities: Annotated[
        list[Literal["segment", "word"]] | UnsetType, Meta(description="of verbose_json: segment, word")
    ] = UNSET
    stream: Annotated[bool, Meta(description="an event for each segment as it becomes certain")] = False


REFUSED = {
    "chunking_strategy": Refused("send vad_filter to leave out where nobody speaks", ("auto",)),
    "include": Refused("verbose_json has the mean log probability of each segment"),
    "known_speaker_names": Refused("speakers are not told apart"),
    "known_speaker_references": Refused("speakers are not told apart"),
    "hotwords": Refused("send prompt"),
    "seed": Refused("draws have a fixed seed"),
}


@dataclass(slots=True, eq=False)
class _Audio:
    """One audio on its way through the engine thread."""

    data: bytes
    options: Mapping[str, Any]
    loop: asyncio.AbstractEventLoop
    deadline: float | None  # a time.monotonic()
    queue: "asyncio.Queue[Segment]" = field(default_factory=asyncio.Queue)
    is_left: bool = False  # nobody waits any more

    def deliver(self, segment: Segment) -> None:
        """Hand a segment to the event loop."""
        self.loop.call_soon_threadsafe(self.queue.put_nowait, segment)


class ServedSpeech(OneAtATime):
    """A speech model behind HTTP; one audio at a time, in the order they came."""

    INPUTS = "audios"
    model: "SpeechRecognizer"
    thread: BatchThread[_Audio]

    @property
    def max_model_len(self) -> int:
        """See Served."""
        return self.model.tokens.context

    @property
    def described(self) -> str:
        """See Served."""
        return (
            f"{self.name}: audio of any length in windows of {self.model.features.window_seconds} s, one at a time; "
            f"engine {self.model.target}"
        )

    def run(self, audios: Sequence[_Audio]) -> Iterable[Transcription | None]:
        """The text of each audio; its segments are delivered on the way. None where nobody waits any more."""
        for audio in audios:
            try:
                found = self._transcribed(audio)
            except ClientLeftError:
                found = None
            yield found

    def _transcribed(self, audio: _Audio) -> Transcription:
        """Of one audio.

        Raises:
            ClientLeftError, DeadlineError, ShuttingDownError: at the first step, of the decoder or of reading, at which
                nobody waits any more, it is too late, or the server ends.
        """

        def on_step() -> None:
            self.thread.report_progress()
            if audio.is_left:
                raise ClientLeftError
            if self.thread.is_stopping:
                raise ShuttingDownError(UNFINISHED)
            if audio.deadline is not None and time.monotonic() >= audio.deadline:
                raise DeadlineError

        segments = list[Segment]()
        with closing(self.model.stream(audio.data, on_step=on_step, **audio.options)) as stream:
            for segment in stream:
                segments.append(segment)
                audio.deliver(segment)
        return Transcription(
            text=joined(segments), language=stream.language, segments=tuple(segments), duration=stream.duration
        )


async def transcribe(served: ServedSpeech, body: TranscriptionRequest, call: Call) -> ASGIApp:
    """/v1/audio/transcriptions."""
    options = _options(served, body)
    if body.language is not UNSET:
        if served.model.languages and body.language not in served.model.languages:
            known = ", ".join(served.model.languages)
            raise RequestError(f"language is {body.language!r}; the model knows: {known}.", param="language")
        options["language"] = body.language
    if body.timestamp_granularities is not UNSET and "word" in body.timestamp_granularities:
        if body.response_format != "verbose_json":
            raise RequestError(
                f"timestamp_granularities has word, and response_format {body.response_format} shows no words; ask for "
                "verbose_json.",
                param="timestamp_granularities",
            )
        options["word_timestamps"] = True
    if body.stream and body.response_format not in {"json", "text"}:
        raise RequestError(
            f"stream gives events; response_format {body.response_format} does not go with it.", param="response_format"
        )
    return _answer(served, body, options, call, is_streamed=body.stream)


async def translate(served: ServedSpeech, body: TranslationRequest, call: Call) -> ASGIApp:
    """/v1/audio/translations: into English."""
    if "translate" not in served.model.tokens.tasks:
        raise RequestError(f"{served.name} cannot translate.", param="model")
    return _answer(served, body, _options(served, body) | {"task": "translate"}, call, is_streamed=False)


def _options(served: ServedSpeech, body: TranslationRequest) -> dict[str, Any]:
    served.thread.check_room()
    options: dict[str, Any] = {} if body.prompt is UNSET else {"initial_prompt": body.prompt}
    if body.temperature is not UNSET and body.temperature > 0:
        options["temperatures"] = (body.temperature,)
    if body.vad_filter:
        options["vad"] = VadOptions()
    if (beams := search_of(body)) is not None:
        options["beams"] = beams
    return options


def _answer(
    served: ServedSpeech, body: TranslationRequest, options: Mapping[str, Any], call: Call, *, is_streamed: bool
) -> ASGIApp:
    audio = _Audio(body.file, options, asyncio.get_running_loop(), call.caller.deadline)
    ticket = BatchTicket([audio], [1], call.caller.request_id, call.caller.deadline)

    async def result() -> Transcription:
        try:
            (found,) = await served.thread.answer(ticket)
            return found  # type: ignore[no-any-return]
        finally:
            audio.is_left = True

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        content, kind = rendered(
            await until_left(result(), receive), body.response_format, options.get("task", "transcribe")
        )
        await Response(content, 200, call.headers, kind)(scope, receive, send)

    async def streamed(_scope: Scope, receive: Receive, send: Send) -> None:
        await until_left(send_events(_events(audio, result()), send, call.headers, _failed), receive)

    return streamed if is_streamed else whole


async def _events(audio: _Audio, result: Awaitable[Transcription]) -> AsyncGenerator[bytes, None]:
    """OpenAI's events: transcript.text.delta for each segment, then transcript.text.done."""
    running = asyncio.ensure_future(result)
    try:
        while not running.done() or not audio.queue.empty():
            waiting = asyncio.ensure_future(audio.queue.get())
            try:
                await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not (is_there := waiting.done()):
                    waiting.cancel()
            if not is_there:
                continue
            segment = waiting.result()
            times = {"start": segment.start, "end": segment.end}
            yield event({"type": "transcript.text.delta", "delta": segment.text, **times})
        yield event({"type": "transcript.text.done", "text": running.result().text})
        yield DONE
    finally:
        running.cancel()


def _failed(problem: Exception) -> bytes:
    return event(request_error(problem).to_json())


def rendered(found: Transcription, form: Format, task: str) -> tuple[bytes, str]:
    """The body of an answer and its media type; `task` is what was asked for."""
    if form == "text":
        return f"{found.text}\n".encode(), "text/plain; charset=utf-8"
    if form == "srt":
        return "".join(to_srt(found.segments)).encode(), "application/x-subrip; charset=utf-8"
    if form == "vtt":
        return "".join(to_vtt(found.segments)).encode(), "text/vtt; charset=utf-8"
    whole = {"text": found.text} if form == "json" else {"task": task, **found.to_json()}
    return msgspec.json.encode(whole), "application/json"


serve = ServedSpeech
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/audio/transcriptions": Endpoint(TranscriptionRequest, transcribe, REFUSED),
    "/v1/audio/translations": Endpoint(TranslationRequest, translate, REFUSED),
}
