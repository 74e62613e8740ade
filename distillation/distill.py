"""distill: a checkpoint and text become a smaller checkpoint that answers alike, or one that rounds as engines do."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piston.checkpoint.quiet import quiet
from piston.core.atomic_dir import atomic_dir, check_free, resumable_dir
from piston.core.cache_dir import expand_user
from piston.core.console import Progress
from piston.core.errors import MisuseError, NoDeviceError
from piston.core.json_text import json_text
from piston.core.outputs import write_output
from piston.data.rows import BUILTIN
from piston.distillation.importance import Ranking, rank
from piston.distillation.layerwise import LayerTrainer
from piston.distillation.options import DistillOptions, TrainingOptions
from piston.distillation.pruning import pruned
from piston.distillation.result import Distilled
from piston.distillation.rounding import StudentLinear
from piston.distillation.scheme import (
    LinearRounding,
    load_weights,
    plain_state,
    read_start,
    recipe_of,
    round_student,
    trained_scales,
    weight_only,
)
from piston.distillation.source import Data, Source
from piston.distillation.sparsity import sparse_already, two_of_four
from piston.distillation.structure import linears_of
from piston.distillation.student import from_config
from piston.distillation.teacher import Teacher
from piston.distillation.training import STATE, Trainer
from piston.graph.sparsity import GROUP
from piston.graph.trained_scales import FILE_NAME as SCALES

RECIPE, RECORD = "recipe.json", "distillation.json"
RANKED_ROWS = 16  # rows that importance is measured on
FARTHEST = 2.0  # nats: a start that is further from its teacher was made from another model


def rank_only(
    place: str, data: Sequence[str | Path], options: DistillOptions, seed: int, scratch: Path, progress: Progress
) -> Ranking:
    """The importance of what `options.prune` would remove; nothing is trained or written. Raises as `distill` does."""
    source = _open(place, options, progress)
    rows = Data.load(data, source.bundle(scratch), seq_len=options.seq_len, seed=seed)
    with progress.phase("ranking"):
        return rank(source.model, options.prune, rows.train[:RANKED_ROWS], progress)


def distill(  # noqa: PLR0913
    place: str,
    out: Path,
    data: Sequence[str | Path],
    options: DistillOptions,
    training: TrainingOptions,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    remark: Callable[[str], None] = lambda _: None,
) -> Distilled:
    """Make a student of a teacher and train it; `out` becomes a checkpoint that `piston export` takes.

    Args:
        place: the teacher: a directory, a hub id or a .gguf file.
        out: the directory to write.
        data: text, JSONL or token files, or "builtin".
        options: what the student is.
        training: how it is trained.
        resume: go on from the state of a run that was stopped.
        progress: shows the phases.
        remark: takes a line about each judged step.

    Raises:
        CheckpointError: the teacher cannot be read, or is quantized already.
        MisuseError: options that contradict each other, too little data, a student of another vocabulary.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
        Error: the disk is full: the state of the last saved step is kept, and the same call with `resume` goes on.
    """
    if training.layerwise and (options.config is not None or options.prune.layers is not None):
        raise MisuseError(
            "--layerwise trains a layer towards the same layer of the teacher; leave --student and --prune layers out."
        )
    progress = progress or Progress(quiet=True)
    reads = [expand_user(place), *(Path(item) for item in data if str(item) != BUILTIN)]
    reads += [item for item in (options.config, options.start) if item is not None]
    check_free(out, reads=reads)
    kept = out.absolute().parent / f".{out.name}.distill"
    if (kept / STATE).exists() and not resume:
        raise MisuseError(f"{kept} holds a run that was stopped; pass --resume to go on, or remove it to begin again.")
    source = _open(place, options, progress)
    with (
        resumable_dir(out, "distill", reads=reads) as scratch,
        atomic_dir(out, reads=reads) as work,
    ):
        job = _Distillation(source, options, training, scratch, progress, remark)
        return job.run(data, work)


def _open(place: str, options: DistillOptions, progress: Progress) -> Source:
    with progress.phase("loading the teacher"):
        source = Source.open(place, revision=options.revision, trust_remote_code=options.trust_remote_code)
        options.prune.check(source.model.config)
        source.model.to(_device(options.device))
    return source


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise NoDeviceError("--device cuda: PyTorch finds no CUDA device here; give --device cpu.")
    return torch.device(name)


@dataclass(slots=True)
class _Distillation:
    """One distillation under way."""

    source: Source
    options: DistillOptions
    training: TrainingOptions
    scratch: Path
    progress: Progress
    remark: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def run(self, sources: Sequence[str | Path], work: Path) -> Distilled:
        """Train and write the checkpoint into `work`."""
        torch.manual_seed(self.training.seed)
        teacher, options = self.source.model, self.options
        with self.progress.phase("reading the data"):
            bundle = self.source.bundle(self.scratch / "tokenizer")
            data = Data.load(sources, bundle, seq_len=options.seq_len, seed=self.training.seed)
        if len(data.train) < self.training.rows:
            raise MisuseError(
                f"The data has {len(data.train)} rows of {data.train.shape[1]} tokens to train on, and a step takes "
                f"{self.training.rows}; add data, or give --rows {len(data.train)}."
            )
        with self.progress.phase("making the student"):
            student, ranking, layers = self._student(data)
            sizes = _count(teacher), _count(student)
            linears, scheme, block = self._round(student, data)
        pairs = self._hidden_pairs(layers)
        key = self._key(data)
        answers = Teacher(teacher, self._answers(key), options.cache_bytes, [place for _, place in pairs])
        numbered = tuple((own, number) for number, (own, _) in enumerate(pairs))
        given = (student, linears, answers, data, self.training, self.scratch, numbered)
        trainer = LayerTrainer(*given, model=teacher) if self.training.layerwise else Trainer(*given)
        if trainer.resume(key):
            self.remark(f"going on from step {trainer.run.step:,}")
        with self.progress.phase("training"):
            self._train(trainer, key)
        with self.progress.phase("writing"):
            self._write(student, linears, scheme, block, work)
        result = Distilled(
            self.source.checkpoint.name,
            type(student).__name__,
            sizes,
            ranking,
            trainer.run,
            trainer.epochs,
            len(data.train),
            tuple(self.notes),
        )
        record = {"piston": version("piston"), "key": key, "data": data.rows.to_json(), **result.to_json()}
        (work / RECORD).write_text(json_text(record, indent=1) + "\n", encoding="utf-8")
        return result

    def _student(self, data: Data) -> tuple[Any, Ranking, tuple[int, ...]]:
        """The student before training, what was measured, and which of the teacher's layers its own come from."""
        teacher, goal = self.source.model, self.options.prune
        layers = tuple(range(teacher.config.num_hidden_layers))
        if self.options.config is not None:
            student, note = from_config(teacher, self.options.config)
            self.notes.append(note)
            return student.to(teacher.device), Ranking(), ()
        ranking = rank(teacher, goal, data.train[:RANKED_ROWS], self.progress) if goal.is_structured else Ranking()
        kept = ranking.kept(goal, len(layers))
        return pruned(teacher, kept).to(teacher.device), ranking, kept.layers

    def _round(self, student: Any, data: Data) -> tuple[dict[str, StudentLinear], str, int]:
        options = self.options
        roundings: dict[str, LinearRounding] = {}
        scheme, block = str(options.scheme), options.block
        if options.start is not None:
            start = read_start(options.start)
            if start.scheme != scheme:
                raise MisuseError(
                    f"--start {options.start} is {start.scheme}, and --scheme is {scheme}; give one of both."
                )
            load_weights(student, start, options.start)
            roundings, block = dict(start.roundings), start.block
        elif scheme != "fp":
            roundings = weight_only(student, 4 if scheme == "w4" else 8, block)
        masks = self._masks(student, data)
        changes_sizes = options.prune.is_structured or options.config is not None
        student.requires_grad_(requires_grad=True)
        if not changes_sizes:  # tables are large, and little text says little of most of their rows
            for table in (student.get_input_embeddings(), student.get_output_embeddings()):
                table.requires_grad_(requires_grad=False)
        return round_student(student, roundings, masks), scheme, block

    def _masks(self, student: Any, data: Data) -> dict[str, Tensor]:
        linears = dict(linears_of(student))
        masks = sparse_already(linears)
        if masks:
            self.notes.append(f"{len(masks)} linears are 2:4 sparse already; their zeros are kept.")
        if not self.options.prune.sparsity:
            return masks
        squares = input_squares(student, linears, data)
        for name, linear in linears.items():
            if linear.in_features % GROUP == 0 and name not in masks:
                masks[name] = two_of_four(linear.weight.detach(), squares[name])
        if left := [name for name in linears if name not in masks]:
            self.notes.append(f"{len(left)} linears stay dense, {left[0]} first: their inputs do not divide by four.")
        return masks

    def _hidden_pairs(self, layers: tuple[int, ...]) -> list[tuple[int, int]]:
        """Outputs of layers to compare, as places in hidden_states of the student and of the teacher."""
        if not self.training.hidden:
            return []
        if not layers or self.source.model.config.hidden_size == 0:
            raise MisuseError(
                "--hidden compares layers that the student has from its teacher; leave it out with --student."
            )
        # The last place holds what the final norm gives, not what a layer does.
        return [(place, layer) for place, layer in enumerate(layers) if place]

    def _answers(self, key: str) -> Path:
        """Where the teacher's answers of this run are kept; those of another run that was stopped here are removed."""
        own = self.scratch / f"answers.{key[:16]}"
        for other in self.scratch.glob("answers.*"):
            if other != own:
                shutil.rmtree(other)
        return own

    def _train(self, trainer: Trainer, key: str) -> None:
        first = trainer.begin(self.remark).held_out.kl
        if self.options.start is not None and first > FARTHEST:
            raise MisuseError(
                f"--start {self.options.start} is {first:.1f} nats from the teacher; calibrate this teacher."
            )
        trainer.train(key, self.progress, self.remark)
        if not trainer.run.step and self.training.steps != 0:
            self.notes.append("not one step was finished in the time given; the student is as it was made.")

    def _write(self, student: Any, linears: dict[str, StudentLinear], scheme: str, block: int, work: Path) -> None:
        plain = type(student)._from_config(student.config, dtype=torch.float32)  # noqa: SLF001
        plain.generation_config = student.generation_config
        plain.load_state_dict({name: value.cpu() for name, value in plain_state(student, linears).items()})
        plain.tie_weights()
        with quiet():
            plain.save_pretrained(work)
            self.source.save_tokenizer(work)
        if scheme != "fp":
            scales = trained_scales(linears).to_bytes()
            (work / SCALES).write_bytes(scales)
            recipe = recipe_of(scheme, block, student, linears, scales)
            write_output(work / RECIPE, json_text(recipe, indent=1) + "\n")

    def _key(self, data: Data) -> str:
        """Of everything that shapes the run but its length."""
        shaping = dataclasses.asdict(self.options) | dataclasses.asdict(self.training)
        for name in ("steps", "minutes", "save_every", "cache_bytes", "device"):
            del shaping[name]
        shaping |= {"teacher": self.source.checkpoint.hashes(), "rows": data.rows.sha256}
        if self.options.start is not None:
            shaping["start"] = hashlib.sha256((self.options.start / "manifest.json").read_bytes()).hexdigest()
        return hashlib.sha256(json_text(shaping, sort_keys=True, default=str).encode()).hexdigest()


@torch.no_grad()
def input_squares(student: Any, linears: dict[str, Any], data: Data) -> dict[str, Tensor]:
    """Sums of the squares of what each linear reads, float32 [in], over a few rows."""
    from piston.distillation.importance import inputs_of

    sums: dict[str, Tensor] = {}
    with inputs_of(linears, sums):
        for row in data.train[:RANKED_ROWS]:
            student(torch.from_numpy(row[None]).to(student.device), use_cache=False)
    return sums


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
