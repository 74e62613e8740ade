"""Word error rates of speech bundles on clips with transcripts, next to the checkpoint in transformers.

    python scripts/speech_quality.py TRANSCRIPTS.tsv BUNDLE [...] [--checkpoint DIR] [--language en] [--num-beams N]

A line of the table has the name of an audio file next to it, a tab, and what is said. Texts are compared without case
and punctuation (Whisper's basic normalization); jiwer counts the words (`pip install jiwer`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from piston.runtime import load
from piston.runtime.audio.reading import read_audio
from piston.runtime.sampling.beam_params import BeamParams

RATE = 16_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcripts", type=Path)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--num-beams", type=int, default=1)
    arguments = parser.parse_args()
    num_beams = arguments.num_beams
    lines = arguments.transcripts.read_text(encoding="utf-8").splitlines()
    clips = [(arguments.transcripts.parent / name, said) for name, _, said in (line.partition("\t") for line in lines)]
    if arguments.checkpoint is not None:
        report("transformers", of_transformers(arguments.checkpoint, arguments.language, num_beams), clips)
    options = {"language": arguments.language} | ({"beams": BeamParams(num_beams=num_beams)} if num_beams > 1 else {})
    for path in arguments.bundles:
        with load(path, max_batch=num_beams) as model:
            report(str(path), lambda audio: model.transcribe(audio, **options).text, clips)


def report(name: str, transcribe: Callable[[Path], str], clips: list[tuple[Path, str]]) -> None:
    """One line: errors of words over all clips, and how much faster than real time."""
    import jiwer
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normal, began = BasicTextNormalizer(), time.perf_counter()
    found = [normal(transcribe(path)) for path, _ in clips]
    seconds = time.perf_counter() - began
    spoken = sum(sum(map(len, read_audio(path, RATE))) for path, _ in clips) / RATE
    words = jiwer.process_words([normal(said) for _, said in clips], found)
    errors = words.substitutions + words.deletions + words.insertions
    total = words.hits + words.substitutions + words.deletions
    print(f"{name}: {words.wer:.2%} ({errors} of {total} words), {spoken / seconds:.1f}x real time")


def of_transformers(checkpoint: Path, language: str, num_beams: int) -> Callable[[Path], str]:
    """The unmodified model in float32, greedy or with beams, with timestamps."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor: Any = WhisperProcessor.from_pretrained(checkpoint)

    def transcribe(path: Path) -> str:
        samples = np.concatenate(list(read_audio(path, RATE)))
        is_long = len(samples) > 30 * RATE
        inputs = processor(
            samples,
            sampling_rate=RATE,
            return_tensors="pt",
            truncation=not is_long,
            padding="longest" if is_long else "max_length",
        )
        options = {"language": language, "task": "transcribe", "return_timestamps": True, "num_beams": num_beams}
        ids = model.generate(inputs.input_features, **options)
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0])

    return transcribe


if __name__ == "__main__":
    main()
