r"""Speech recognition: bundles beside faster-whisper and OpenVINO GenAI, both in INT8, in one interleaved run.

    python scripts/compare_speech.py BUNDLE [BUNDLE ...] --checkpoint DIR --rivals PYTHON --transcripts TSV -o DIR

A line of TSV has the name of an audio file next to it, a tab, and what is said. The files are joined in their order,
over again where they are too short, until they last --seconds. With --audio FILE one file is heard instead; its word
error rate is told where TSV names it. DIR (of -o) keeps the converted checkpoints; another run takes them from there.

All hear the same samples (16 kHz, float32, in memory), greedily, in the same language, with timestamps of segments,
without voice activity detection, higher temperatures, or the text of windows before. What is printed: seconds, times
real time, peak memory of each process, words and word error rate, since who writes less is faster; and the ratios.

PYTHON is the interpreter of an environment made by

    pip install torch==2.13.0 'transformers<5' 'optimum-intel[openvino]' openvino-genai==2026.4.1.0 \
        ctranslate2==4.8.5 faster-whisper==1.2.1
    pip uninstall torchvision

since transformers 4 may fail on importing the torchvision that optimum-intel brings. Word error rates need jiwer
here (`pip install 'piston[metrics]'`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import Found, Run, bundles_and_rivals, machine_line, made, measured, ratio_lines

GOALS = {"faster-whisper": 1.5, "openvino": 1.2}
RATE = 16_000
WORK = "audio"


def main() -> None:
    """Convert what is missing, measure, and print."""
    arguments = parsed()
    from piston.core.machine import num_cores
    from piston.core.units import shown
    from piston.evaluation.references import word_error_rate

    word_error_rate([WORK], [WORK])  # fails now, not after the measurement, where jiwer is missing
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples, seconds, said, described = heard(arguments)
    bundles, rivals = bundles_and_rivals(arguments.bundle, converted(arguments), arguments.rivals)
    options = {"threads": num_cores(), "samples": str(samples), "language": arguments.language}
    found = measured(__file__, [*bundles, *rivals], {WORK: 1}, options, arguments.rounds)
    print(f"{seconds:.1f} s of speech: {described}")
    print(machine_line(num_cores(), arguments.rounds))
    print("\n| | time | times real time | peak memory | words | word error rate |\n|---|---|---|---|---|---|")
    for name, item in found.items():
        took, text = item.median(WORK), item.answers[WORK]
        errors = "-" if said is None else f"{word_error_rate([text], [said]):.2%}"
        cells = [shown(took, "s"), f"{seconds / took:.1f}x", shown(item.peak_bytes, "bytes")]
        print(f"| {name} | {' | '.join(cells)} | {len(text.split())} | {errors} |")
    print()
    print("\n".join(ratio_lines(found, [item.name for item in bundles], GOALS, {WORK: "speed"})))
    print("\n".join(memory_lines(found, [item.name for item in bundles])))
    if arguments.texts:
        print("".join(f"\n{name}: {item.answers[WORK]}" for name, item in found.items()))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rivals", required=True, metavar="PYTHON")
    parser.add_argument("--transcripts", type=Path, metavar="TSV")
    parser.add_argument("--audio", type=Path, metavar="FILE")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--language", default="en")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--texts", action="store_true", help="print what each has written")
    arguments = parser.parse_args()
    if arguments.audio is None and arguments.transcripts is None:
        parser.error("name --transcripts or --audio")
    return arguments


def heard(arguments: argparse.Namespace) -> tuple[Path, float, str | None, str]:
    """Write the samples to a file; its path, seconds, what is said if that is known, and which files they are."""
    import numpy as np

    from piston.runtime.audio.reading import read_audio

    lines = [] if arguments.transcripts is None else arguments.transcripts.read_text(encoding="utf-8").splitlines()
    clips = [(arguments.transcripts.parent / name, said) for name, _, said in (line.partition("\t") for line in lines)]
    if arguments.audio is not None:
        clips = [clip for clip in clips if clip[0].name == arguments.audio.name] or [(arguments.audio, "")]
    parts, texts, names = list[Any](), list[str](), list[str]()
    while sum(map(len, parts)) < arguments.seconds * RATE and not (arguments.audio and parts):
        path, said = clips[len(names) % len(clips)]
        parts.append(np.concatenate(list(read_audio(path, RATE))))
        texts.append(said)
        names.append(path.name)
    samples = np.concatenate(parts).astype(np.float32)
    np.save(arguments.out / "samples.npy", samples)
    said = " ".join(texts).strip() or None
    return arguments.out / "samples.npy", len(samples) / RATE, said, ", ".join(names)


def converted(arguments: argparse.Namespace) -> dict[str, Path]:
    """The checkpoint in each rival's format, weights in INT8."""
    tools, source = Path(arguments.rivals).absolute().parent, arguments.checkpoint
    fast, openvino = arguments.out / "faster-whisper-int8", arguments.out / "openvino-int8"
    made(
        fast,
        [
            *(tools / "ct2-transformers-converter", "--model", source, "--output_dir", fast, "--quantization", "int8"),
            *("--copy_files", "tokenizer.json", "preprocessor_config.json"),
        ],
    )
    task = ["--task", "automatic-speech-recognition-with-past", "--weight-format", "int8"]
    made(openvino, [tools / "optimum-cli", "export", "openvino", *task, "--model", source, openvino])
    return {"faster-whisper": fast, "openvino": openvino}


def memory_lines(found: dict[str, Found], own: Sequence[str]) -> list[str]:
    """Rows of the table of ratios: peak memory against faster-whisper's, which is to be larger."""
    rival, lines = found["faster-whisper"].peak_bytes, []
    for name in own:
        ratio = rival / found[name].peak_bytes
        verdict = "met" if ratio > 1 else "**missed**"
        lines.append(f"| peak memory | {name} | faster-whisper | {ratio:.2f}x | below | {verdict} |")
    return lines


def open_piston(path: Path, options: dict[str, Any]) -> Run:
    """A bundle."""
    import numpy as np

    from piston.runtime import load

    model, samples = load(path, threads=options["threads"]), np.load(options["samples"])

    def run(_: str) -> str:
        return model.transcribe((samples, RATE), language=options["language"], temperatures=(0.0,)).text

    return run


def open_faster_whisper(path: Path, options: dict[str, Any]) -> Run:
    """The checkpoint that CTranslate2 has converted."""
    import numpy as np
    from faster_whisper import WhisperModel  # type: ignore[import-not-found]

    model = WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=options["threads"], num_workers=1)
    samples = np.load(options["samples"])
    greedy = {"beam_size": 1, "best_of": 1, "temperature": 0.0, "condition_on_previous_text": False}

    def run(_: str) -> str:
        segments, _info = model.transcribe(samples, language=options["language"], vad_filter=False, **greedy)
        return " ".join(segment.text.strip() for segment in segments)

    return run


def open_openvino(path: Path, options: dict[str, Any]) -> Run:
    """The checkpoint that optimum-intel has exported."""
    import numpy as np
    import openvino_genai  # type: ignore[import-not-found]

    pipeline = openvino_genai.WhisperPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=options["threads"])
    samples, language = np.load(options["samples"]), f"<|{options['language']}|>"

    def run(_: str) -> str:
        result = pipeline.generate(samples, language=language, task="transcribe", return_timestamps=True)
        return str(result.texts[0]).strip()

    return run


OPENERS = {"piston": open_piston, "faster-whisper": open_faster_whisper, "openvino": open_openvino}

if __name__ == "__main__":
    sys.exit(main())
