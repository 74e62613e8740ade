"""Calibration data of encoder-decoders: sources, and the answers that their decoders are made to read."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError
from piston.core.tasks import task_module
from piston.data.held_out import NUM_ROWS, HeldOutRows
from piston.data.overlap import Overlap, overlap
from piston.data.rows import BUILTIN, DEFAULT_LENGTH, TEXTS, DataFile, RowOptions
from piston.evaluation import tasks
from piston.evaluation.encoder_decoders import ForcedAnswer, hash_answers, open_model
from piston.evaluation.examples import Example

SLOTS = 8  # texts that are answered together
SHORTEST = 40  # characters of a paragraph of the built-in texts that is worth a row


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRows:
    """What both graphs are run on, and where it came from."""

    answers: tuple[ForcedAnswer, ...]
    files: tuple[DataFile, ...]
    seed: int

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by name."""
        return {file.name: file.sha256 for file in self.files}

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of them."""
        files = [{"name": file.name, "sha256": file.sha256} for file in self.files]
        positions = sum(answer.source.length for answer in self.answers)
        tokens = sum(len(answer.read_ids) for answer in self.answers)
        return {
            "rows": len(self.answers),
            "source_positions": positions,
            "answer_tokens": tokens,
            "seed": self.seed,
            "sha256": hash_answers(self.answers),
            "files": files,
        }


class HeldOutAnswers(HeldOutRows[tuple[ForcedAnswer, ...]]):
    """Answers of the float model."""

    __slots__ = ()

    @property
    def sha256(self) -> str:
        """Of sources and answers."""
        return hash_answers(self.ids)


def load_answers(
    sources: Sequence[str | Path],
    model_dir: Path,
    options: RowOptions,
    check_data: str | Path | None,
    progress: Progress,
) -> tuple[AnswerRows | None, HeldOutAnswers]:
    """Rows to calibrate on, None without sources, and rows to check on; the float model answers what has no answer.

    The latter are of `check_data`; else the last ones of the sources, or of the texts that come with Piston.

    Raises:
        MisuseError: a file is not what the task reads, or there are too few examples.
        EngineError: the float model does not run.
    """
    _check_options(options)
    is_apart = not sources or check_data is not None
    examples, files = _read(sources, model_dir, options) if sources else ([], ())
    wanted = options.num_rows if is_apart else options.num_rows + NUM_ROWS
    checked = _read([BUILTIN if check_data is None else check_data], model_dir, options)[0] if is_apart else []
    with closing(_opened(model_dir, options)) as model:
        answers = _answered(model, examples, wanted, "answering calibration data", progress) if sources else []
        if sources:
            _check_number(len(answers), options, 0 if is_apart else NUM_ROWS)
        apart = (
            _answered(model, checked, NUM_ROWS, "answering the text to check on", progress)
            if is_apart
            else answers[options.num_rows :]
        )
    rows = AnswerRows(answers=tuple(answers[: options.num_rows]), files=files, seed=options.seed) if sources else None
    name = (
        (BUILTIN if check_data is None else str(check_data))
        if is_apart
        else "rows kept apart from the calibration data"
    )
    return rows, HeldOutAnswers(tuple(apart), name, _overlap(apart, rows))


def _read(
    sources: Sequence[str | Path], model_dir: Path, options: RowOptions
) -> tuple[list[Example], tuple[DataFile, ...]]:
    """Different examples in random order, and the files that they are of."""
    task = Manifest.read(model_dir).task
    read, found, files = task_module(tasks, task).read_examples, list[Example](), list[DataFile]()
    for source in sources:
        paths = sorted(TEXTS.glob("*.txt")) if str(source) == BUILTIN else [Path(source)]
        if str(source) == BUILTIN:
            if not _reads_text(model_dir):
                raise MisuseError(
                    f"The built-in data is text, and {model_dir} reads audio; give audio files, or a list of them, as "
                    "--data, and where no scheme reads it as --check-data."
                )
            found += [example for path in paths for example in _paragraphs(path)]
        else:
            found += read(paths[0])
        files += [DataFile(path.name, hashlib.sha256(read_bytes(path)).hexdigest()) for path in paths]
    found = list(dict.fromkeys(found))
    order = np.random.default_rng(options.seed).permutation(len(found))
    return [found[index] for index in order], tuple(files)


def _paragraphs(path: Path) -> list[Example]:
    parts = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    joined = [" ".join(part.split()) for part in parts]
    return [Example(source=text) for text in joined if len(text) >= SHORTEST]


def _reads_text(model_dir: Path) -> bool:
    graphs = Manifest.read(model_dir).graphs
    return any(tensor.name == "input_ids" for tensor in next(iter(graphs.values())).inputs)


def _opened(model_dir: Path, options: RowOptions) -> Any:
    manifest = Manifest.read(model_dir)
    positions = manifest.model.max_positions
    length = options.seq_len or min(DEFAULT_LENGTH, positions)
    if length > positions:
        raise MisuseError(f"--seq-len {length:,}: {manifest.model.name} takes up to {positions:,} positions.")
    return open_model(model_dir, max_source=length, num_slots=SLOTS if _reads_text(model_dir) else 1)


def _answered(
    model: Any, examples: Sequence[Example], wanted: int, name: str, progress: Progress
) -> list[ForcedAnswer]:
    module = task_module(tasks, model.manifest.task)
    with progress.phase(name):
        found: list[ForcedAnswer] = module.forced_answers(
            model, examples, wanted, lambda done: progress.step(name, done, wanted)
        )
    return found


def _check_options(options: RowOptions) -> None:
    if options.num_rows < 1:
        raise MisuseError(f"{options.num_rows} calibration rows were asked for; at least 1 is needed.")
    if options.seq_len is not None and options.seq_len < 1:
        raise MisuseError(f"--seq-len is {options.seq_len}; it must be at least 1.")
    if options.seed < 0:
        raise MisuseError(f"The seed of the rows is {options.seed}; it must be at least 0.")
    if options.field is not None:
        raise MisuseError("--field is for rows of text; records of encoder-decoders have fixed names (docs/tasks.md).")


def _check_number(found: int, options: RowOptions, apart: int) -> None:
    if found < options.num_rows + apart:
        also = f" and {apart} to check the result on" if apart else ""
        other = ", or give --check-data" if apart else ""
        raise MisuseError(
            f"The data has {found:,} examples; {options.num_rows:,}{also} were asked for. Add data, or ask for fewer "
            f"by --samples{other}."
        )


def _overlap(apart: Sequence[ForcedAnswer], rows: AnswerRows | None) -> Overlap:
    """Of the texts; sounds are not compared."""
    if "input_ids" not in apart[0].source.feeds:
        return Overlap((), 0, 0)
    calibrated = () if rows is None else rows.answers
    return overlap(
        [answer.source.feeds["input_ids"][0] for answer in apart],
        [answer.source.feeds["input_ids"][0] for answer in calibrated],
    )
