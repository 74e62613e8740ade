"""Speech recognition: transcripts that differ, and how many of their words do."""

import difflib
from pathlib import Path

from piston.core.console import Progress
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.evaluation.examples import Example, read_audio_list
from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer

DATA = 'audio: the path of a file on each line, or records with an "audio" and maybe a "language"'


def differences(
    before: SpeechRecognizer, after: SpeechRecognizer, path: Path, options: DiffOptions, progress: Progress
) -> Diff:
    """Transcribe every audio greedily with both; a change is the larger, the more of the words are others."""
    examples = read_audio_list(path)[: options.max_records]
    changed = []
    for done, example in enumerate(examples):
        progress.step("transcribing", done, len(examples))
        old, new = (_transcript(model, example) for model in (before, after))
        if old != new:
            changed.append(_change(done + 1, example, old, new))
    same = 1 - len(changed) / len(examples)
    return Diff(
        task="automatic-speech-recognition",
        num_records=len(examples),
        figures=(("equal_texts", same, "audio with the same transcript"),),
        changes=worst_first(changed),
    )


def _transcript(model: SpeechRecognizer, example: Example) -> str:
    language = example.languages[0] if example.languages else None
    return model.transcribe(example.source, language=language, temperatures=(0.0,)).text


def _change(record: int, example: Example, old: str, new: str) -> Change:
    words = old.split(), new.split()
    matches = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    changed = sum(
        max(end - start, new_end - new_start) for tag, start, end, new_start, new_end in matches if tag != "equal"
    )
    return Change(
        record=record,
        text=str(example.source),
        before=old,
        after=new,
        note=f"words changed: {changed:,} (of {len(words[0]):,})",
        size=changed / max(1, len(words[0])),
    )
