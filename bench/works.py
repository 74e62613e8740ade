"""What a bundle is measured on, from the options: made prompts and sounds, or those of a file."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from piston.bench.child import Contender
from piston.bench.load.setting import LoadSetting
from piston.bench.workload import Setting, Work, settings_of, work_of_file
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError
from piston.core.tasks import task_module, task_names
from piston.evaluation.examples import read_audio_list
from piston.runtime import tasks
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.made_sounds import write_voice
from piston.runtime.audio.reading import read_audio
from piston.runtime.bundle import Bundle
from piston.runtime.golden_sounds import least_length
from piston.runtime.tasks.automatic_speech_recognition import TASK as SPEECH
from piston.runtime.tasks.module import TASK as MODULE
from piston.runtime.tasks.text2text_generation import TASK as TEXT_TO_TEXT

TASKS = (TEXT_GENERATION, TEXT_TO_TEXT, SPEECH)  # whose bundles are measured at settings
PROMPT_LENS, AUDIO_LENS = [128, 512], [30.0]  # by default
GEN_LENS = "64"
# Options of texts, and of speech, with their defaults.
OF_TEXTS = {"--batch": [1], "--prompt-len": None, "--num-beams": [1]}
OF_SPEECH = {"--audio-len": None}


def is_measured(task: str) -> bool:
    """Whether `piston bench` measures bundles of a task."""
    return task in (*TASKS, MODULE) or (task in task_names(tasks) and hasattr(task_module(tasks, task), "MODEL"))


def works_of(arguments: argparse.Namespace, bundle: Bundle, scratch: Path) -> list[Work]:
    """The settings of the options and their prompts; made sounds are written below `scratch`.

    Raises:
        MisuseError: an option is not of the bundle's task, a number is out of range, or a file cannot be read.
    """
    task = bundle.manifest.task
    for option, default in (OF_TEXTS if task == SPEECH else OF_SPEECH).items():
        if getattr(arguments, option.removeprefix("--").replace("-", "_")) != default:
            raise MisuseError(f"{option} is not for {task}; leave it out.")
    if min(arguments.neighbours, default=-1) < 0:
        raise MisuseError("--neighbours must be a list of numbers of processes, each at least 0.")
    works = _of_speech(arguments, bundle, scratch) if task == SPEECH else _of_texts(arguments, bundle)
    beside = list(dict.fromkeys(arguments.neighbours))
    return [replace(work, setting=replace(work.setting, neighbours=count)) for work in works for count in beside]


def _of_texts(arguments: argparse.Namespace, bundle: Bundle) -> list[Work]:
    model, gen_lens = bundle.manifest.model, lengths(arguments.gen_len, "--gen-len")
    if arguments.prompts is not None:
        works = work_of_file(arguments.prompts, bundle.tokenizer(), model.vocab_size, arguments.batch, gen_lens)
    else:
        prompt_lens = PROMPT_LENS if arguments.prompt_len is None else lengths(arguments.prompt_len, "--prompt-len")
        settings = settings_of(arguments.batch, prompt_lens, gen_lens)
        works = [Work(setting, model.vocab_size) for setting in settings]
    if min(arguments.num_beams, default=0) < 1:
        raise MisuseError("--num-beams must be a list of numbers of at least 1.")
    task, beams = bundle.manifest.task, list(dict.fromkeys(arguments.num_beams))
    return [
        replace(work, setting=replace(work.setting, task=task, num_beams=count)) for work in works for count in beams
    ]


def _of_speech(arguments: argparse.Namespace, bundle: Bundle, scratch: Path) -> list[Work]:
    model, features = bundle.manifest.model, LogMel.of(bundle.manifest.settings["features"])
    if arguments.prompts is not None:
        if arguments.audio_len is not None or arguments.gen_len != GEN_LENS:
            raise MisuseError("--prompts have their own sounds and texts; leave out --audio-len and --gen-len.")
        paths = [Path(example.source) for example in read_audio_list(arguments.prompts)]
        digest = hashlib.sha256(b"".join(hashlib.sha256(read_bytes(path)).digest() for path in paths)).hexdigest()
        longest = max(sum(map(len, read_audio(path, features.rate))) / features.rate for path in paths)
        setting = Setting(1, 1, 0, digest, task=SPEECH, audio=round(longest, 3))
        return [Work(setting, model.vocab_size, audios=tuple(map(str, paths)))]
    settings, works = settings_of([1], [1], lengths(arguments.gen_len, "--gen-len")), []
    for number, seconds in enumerate(_seconds(arguments.audio_len)):
        path = scratch / f"sound-{number}.wav"
        write_voice(path, seconds, features.rate)
        works += [
            Work(replace(setting, task=SPEECH, audio=seconds), model.vocab_size, audios=(str(path),))
            for setting in settings
        ]
    return works


def check_positions(contenders: Sequence[Contender], settings: Sequence[Setting | LoadSetting]) -> None:
    """Refuse settings that need more positions than the engines of the bundles were built for. Raises MisuseError."""
    for contender in contenders:
        if contender.kind != "piston":
            continue
        bundle = Bundle.open(contender.path, verify=False)
        model, specs = bundle.manifest.model, bundle.engines(contender.target)
        held = max(int(spec.actual.get("max_positions", model.max_positions)) for spec in specs)
        for setting in settings:
            needed = setting.num_positions
            if isinstance(setting, Setting) and setting.audio:
                needed = least_length(bundle.manifest) - 1 + setting.gen_len if setting.gen_len else 0
            if needed > held:
                is_model = held == model.max_positions
                more = "" if is_model else ", or build the bundle with a larger --max-length"
                raise MisuseError(
                    f"{setting.name} needs {needed:,} positions; {'the model' if is_model else contender.name} has "
                    f"{held:,}. Lower --prompt-len or --gen-len{more}."
                )


def lengths(text: str, option: str) -> list[int]:
    """Numbers of an option; raises MisuseError."""
    try:
        return numbers(text)
    except argparse.ArgumentTypeError as problem:
        raise MisuseError(f"argument {option}: {problem}") from None


def numbers(text: str) -> list[int]:
    """Integers that commas separate; raises ArgumentTypeError."""
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 128,512") from None


def _seconds(text: str | None) -> Sequence[float]:
    """To the millisecond, each once."""
    try:
        found = AUDIO_LENS if text is None else list(dict.fromkeys(round(float(part), 3) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or not all(0.5 <= seconds <= 86_400 for seconds in found):  # noqa: PLR2004 - a day
        raise MisuseError(f"--audio-len is {text}; write seconds such as 30 or 10,60, each from 0.5 to 86400.")
    return found
