"""`piston run` on a speech model: the text of audio files, with times."""

import argparse
from typing import Any, get_args

from piston.cli.beam_options import add_beam_arguments, beams_from
from piston.cli.shared_options import load_from
from piston.core.console import Progress, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.standard_input import DASH, read_standard_input_bytes
from piston.runtime.audio.transcription import Transcription, by_words, joined, to_srt, to_vtt
from piston.runtime.audio.voice_activity import VadMethod, VadOptions

TASK = "automatic-speech-recognition"
FORMATS = ("text", "srt", "vtt", "json")
VAD_NUMBERS = {
    "threshold": "score from which sound is speech (default 0.5)",
    "min_speech": "seconds; shorter speech is left out (default 0.1)",
    "min_silence": "seconds of silence that are left out (default 2)",
    "padding": "seconds kept before and after speech (default 0.4)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    parser.add_argument(
        "--audio", metavar="FILE", required=True, help="a WAV file, others with piston[audio]; - reads standard input"
    )
    parser.add_argument("--language", metavar="CODE", help="such as en (default: detected)")
    parser.add_argument(
        "--task", choices=("transcribe", "translate"), default="transcribe", help="translate: into English"
    )
    parser.add_argument(
        "--timestamps",
        choices=("segment", "word", "none"),
        default="segment",
        help="word: also of each word, in JSON and as cues; none: text alone, of one window (default: segment)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="what is printed (default: text)")
    parser.add_argument("--initial-prompt", metavar="TEXT", help="text that sets style and spelling")
    parser.add_argument(
        "--condition-on-previous", action="store_true", help="give the decoder the text of the windows before"
    )
    parser.add_argument(
        "--vad",
        choices=get_args(VadMethod),
        help="read only where somebody speaks: silero, a network (pip install --no-deps silero-vad), or energy, what "
        "is louder than the quietest tenth",
    )
    for name, what in VAD_NUMBERS.items():
        parser.add_argument(f"--vad-{name.replace('_', '-')}", type=float, metavar="N", help=f"with --vad: {what}")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    add_beam_arguments(parser, "needs a --max-batch of N")


def run(arguments: argparse.Namespace) -> int:
    """Transcribe; segments are printed as they become certain, where the format allows it."""
    form = "json" if arguments.json else arguments.format
    if arguments.json and arguments.format not in {"text", "json"}:
        raise MisuseError(f"--json and --format {arguments.format} contradict each other; leave one out.")
    if arguments.timestamps == "word" and form == "text":
        raise MisuseError("--format text shows no times; --timestamps word needs --format json, srt or vtt.")
    if arguments.timestamps == "none" and form in {"srt", "vtt"}:
        raise MisuseError(f"--format {form} needs --timestamps segment.")
    vad, beams = _vad_of(arguments), beams_from(arguments)
    audio = read_standard_input_bytes() if arguments.audio == DASH else arguments.audio
    progress = Progress(quiet=arguments.quiet)
    with load_from(arguments, TASK) as model:
        options: dict[str, Any] = {
            "language": arguments.language,
            "task": arguments.task,
            "timestamps": arguments.timestamps != "none",
            "word_timestamps": arguments.timestamps == "word",
            "initial_prompt": arguments.initial_prompt,
            "condition_on_previous": arguments.condition_on_previous,
            "vad": vad,
            "beams": beams,
        }
        with progress.phase("transcribing"):
            stream = model.stream(
                audio,
                on_progress=lambda done, total: progress.step("transcribing", round(done), max(round(total), 1)),
                **options,
            )
            if form in {"srt", "vtt"} and arguments.timestamps == "word":
                stream = by_words(stream)
            if form == "json":
                segments = tuple(stream)
                result = Transcription(
                    text=joined(segments), language=stream.language, segments=segments, duration=stream.duration
                )
                print_json(result.to_json())
                return 0
            lines = {"srt": to_srt, "vtt": to_vtt}.get(form)
            if lines is not None:
                for block in lines(stream):
                    print_text(block, end="")
                return 0
            for segment in stream:
                print_text(segment.text.strip())
    return 0


def _vad_of(arguments: argparse.Namespace) -> VadOptions | None:
    numbers = {name: getattr(arguments, f"vad_{name}") for name in VAD_NUMBERS}
    given = {name: value for name, value in numbers.items() if value is not None}
    if arguments.vad is not None:
        return VadOptions(method=arguments.vad, **given)
    if given:
        raise MisuseError(f"--vad-{next(iter(given)).replace('_', '-')} needs --vad.")
    return None
