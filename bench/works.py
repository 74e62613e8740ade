"""What a bundle is measured on, from the options: made prompts and sounds, or those of a file."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from piston.bench.child import Contender
from piston.bench.encoders import METRICS as ENCODER_METRICS
from piston.bench.load.setting import LoadSetting
from piston.bench.metrics import METRICS, names_of
from piston.bench.modules import METRICS as MODULE_METRICS
from piston.bench.workload import Setting, Work, settings_of, work_of_file
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError
from piston.core.given import given_option
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
# Options that only bundles that are measured at settings have, with their defaults.
OF_LANGUAGE_MODELS = {
    "--alpha": 0.05,
    "--checkpoint": None,
    "--batch": [1],
    "--prompt-len": None,
    "--gen-len": GEN_LENS,
    "--num-beams": [1],
    "--audio-len": None,
    "--neighbours": [0],
    "--starts": 3,
    "--against": [],
    "--env": [],
    "--rivals": None,
    "--baseline": None,
    "--profile": False,
    "--html": None,
    "--junit": None,
    "--markdown": None,
}
# Options of language models, of texts, and of speech, with their defaults.
OF_GENERATION = {"--profile": False}
OF_TEXTS = {"--batch": [1], "--prompt-len": None, "--num-beams": [1]}
OF_SPEECH = {"--audio-len": None}


def is_measured(task: str) -> bool:
    """Whether `piston bench` measures bundles of a task."""
    return task in (*TASKS, MODULE) or (task in task_names(tasks) and hasattr(task_module(tasks, task), "MODEL"))


def check_task(arguments: argparse.Namespace, task: str) -> None:
    """Refuse options that are not for a task, and lists that cannot be read; raises MisuseError."""
    others = OF_LANGUAGE_MODELS if task not in TASKS else {} if task == TEXT_GENERATION else OF_GENERATION
    if (option := given_option(arguments, others)) is not None:
        raise MisuseError(f"{option} is for language models, and this model is for {task}; leave it out.")
    if task not in TASKS:
        return
    if (option := given_option(arguments, OF_TEXTS if task == SPEECH else OF_SPEECH)) is not None:
        raise MisuseError(f"{option} is not for {task}; leave it out.")
    if arguments.prompts is not None and arguments.prompt_len is not None:
        raise MisuseError("--prompts have their own lengths; leave out --prompt-len.")
    if task == SPEECH and arguments.prompts is not None and (arguments.audio_len or arguments.gen_len != GEN_LENS):
        raise MisuseError("--prompts have their own sounds and texts; leave out --audio-len and --gen-len.")
    if min(arguments.neighbours, default=-1) < 0:
        raise MisuseError("--neighbours must be a list of numbers of processes, each at least 0.")
    if min(arguments.num_beams, default=0) < 1:
        raise MisuseError("--num-beams must be a list of numbers of at least 1.")
    asked_settings(arguments)
    _seconds(arguments.audio_len)


def figures_of(arguments: argparse.Namespace, task: str) -> list[str]:
    """The figures that `piston bench` has of a task's bundles with these options, without quantiles."""
    if task not in TASKS:
        return [*(MODULE_METRICS if task == MODULE else ENCODER_METRICS)]
    audio = 1.0 if task == SPEECH else 0.0
    settings = [
        replace(setting, task=task, audio=audio, num_beams=count)
        for setting in asked_settings(arguments)
        for count in arguments.num_beams
    ]
    known = set.union(*map(names_of, settings))
    return [name for name, metric in METRICS.items() if (arguments.starts if metric.is_of_start else name in known)]


def asked_settings(arguments: argparse.Namespace) -> list[Setting]:
    """The settings of rows and lengths; raises MisuseError."""
    prompt_lens = PROMPT_LENS if arguments.prompt_len is None else lengths(arguments.prompt_len, "--prompt-len")
    return settings_of(arguments.batch, prompt_lens, lengths(arguments.gen_len, "--gen-len"))


def works_of(arguments: argparse.Namespace, bundle: Bundle, scratch: Path) -> list[Work]:
    """The settings of the options and their prompts; made sounds are written below `scratch`.

    Raises:
        MisuseError: a number is out of range, or a file cannot be read.
    """
    is_speech = bundle.manifest.task == SPEECH
    works = _of_speech(arguments, bundle, scratch) if is_speech else _of_texts(arguments, bundle)
    beside = list(dict.fromkeys(arguments.neighbours))
    return [replace(work, setting=replace(work.setting, neighbours=count)) for work in works for count in beside]


def _of_texts(arguments: argparse.Namespace, bundle: Bundle) -> list[Work]:
    model = bundle.manifest.model
    if arguments.prompts is not None:
        gen_lens = lengths(arguments.gen_len, "--gen-len")
        works = work_of_file(arguments.prompts, bundle.tokenizer(), model.vocab_size, arguments.batch, gen_lens)
    else:
        works = [Work(setting, model.vocab_size) for setting in asked_settings(arguments)]
    task, beams = bundle.manifest.task, list(dict.fromkeys(arguments.num_beams))
    return [
        replace(work, setting=replace(work.setting, task=task, num_beams=count)) for work in works for count in beams
    ]


def _of_speech(arguments: argparse.Namespace, bundle: Bundle, scratch: Path) -> list[Work]:
    model, features = bundle.manifest.model, LogMel.of(bundle.manifest.settings["features"])
    if arguments.prompts is not None:
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
