"""What a checkpoint says of its special tokens, how an audio is to be transcribed, and the prompt that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from piston.core.arguments import check_fields
from piston.core.errors import MisuseError
from piston.runtime.audio.voice_activity import VadOptions
from piston.runtime.sampling.beam_params import BeamParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechTokens:
    """The special tokens of a checkpoint, and what it says of decoding; recorded in the bundle's settings."""

    start: int
    end: int
    no_timestamps: int
    previous: int | None = None  # comes before the text of former windows
    no_speech: int | None = None
    languages: dict[str, int] = field(default_factory=dict)  # by code; empty: an English-only model
    tasks: dict[str, int] = field(default_factory=dict)  # transcribe, translate
    latest_start: int | None = None
    context: int = 448  # positions of the decoder

    @property
    def first_timestamp(self) -> int:
        """The token of 0.00 seconds."""
        return self.no_timestamps + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeOptions:
    """How to transcribe; thresholds of None are not applied.

    Args:
        language: its code; None: detected in the first window.
        task: "transcribe", or "translate" into English.
        timestamps: whether the model says where segments begin and end. Without them only audio of one window is read.
        word_timestamps: whether each word gets its times, by what the decoder looks at; needs timestamps.
        initial_prompt: token ids of text that sets style and spelling.
        condition_on_previous: give the decoder the text of the windows before.
        temperatures: tried in turn until a result is accepted.
        compression_ratio_threshold: of the text's bytes to their zlib form; above it the text repeats itself.
        logprob_threshold: mean log probability of the tokens; below it the decoding failed.
        no_speech_threshold: above it, where the decoding also failed, the window is taken for silence.
        beams: search for the likeliest tokens at temperature 0; each beam takes a slot. Higher temperatures draw.
        vad: voice activity detection: only clips in which somebody speaks are read; None reads all.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: bool = True
    word_timestamps: bool = False
    initial_prompt: tuple[int, ...] = ()
    condition_on_previous: bool = False
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    beams: BeamParams | None = None
    vad: VadOptions | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)
        if not self.temperatures:
            raise MisuseError("temperatures is empty; it must name at least one, such as (0.0,).")
        if self.beams is not None and self.beams.num_return_sequences != 1:
            raise MisuseError("A transcription has one text; num_return_sequences must be 1.")
        if self.beams is not None and 0 not in self.temperatures:
            raise MisuseError("beams are for temperature 0, which temperatures does not have; leave one of them out.")


def prompt_of(
    tokens: SpeechTokens, options: TranscribeOptions, language: str | None, former: Sequence[int]
) -> list[int]:
    """What the decoder reads before its text.

    Raises:
        MisuseError: the checkpoint does not have this language or task.
    """
    room = tokens.context // 2 - 1
    before = [*options.initial_prompt, *former]
    prompt: list[int] = []
    if before:
        if tokens.previous is None:
            raise MisuseError("This checkpoint takes no prompt: it has no token for former text.")
        prompt += [tokens.previous, *before[-room:]]
    prompt.append(tokens.start)
    if tokens.languages:
        if language not in tokens.languages:
            known = ", ".join(sorted(tokens.languages))
            raise MisuseError(f"The model does not know the language {language!r}; it knows: {known}.")
        prompt += [tokens.languages[language], _task(tokens, options.task)]
    elif options.task != "transcribe" or language not in {None, "en"}:
        raise MisuseError(f"The model is for English alone; it cannot {options.task} {language or 'other languages'}.")
    return prompt if options.timestamps else [*prompt, tokens.no_timestamps]


def _task(tokens: SpeechTokens, task: str) -> int:
    if task not in tokens.tasks:
        raise MisuseError(f"The model has no task {task!r}; it has: {', '.join(tokens.tasks) or 'none'}.")
    return tokens.tasks[task]
