"""Two models of an encoder task on the same rows of token ids, and how far their outputs are from each other."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import ENCODER
from piston.core.console import Progress
from piston.core.gates import Metric
from piston.core.tasks import task_module
from piston.evaluation import tasks as evaluation_tasks
from piston.evaluation.tasks import Comparison, TaskModel
from piston.runtime import tasks
from piston.runtime.backends.session import OrtOptions, OrtSession, Session
from piston.runtime.bundle import Bundle
from piston.runtime.encoder import EncoderModel
from piston.runtime.scores import softmax

PARTS = (1.0, 0.5, 0.25, 0.1)  # of a row's length: short texts are read as well as long ones
Array = NDArray[np.float32]

AGREEMENT = Metric(
    name="agreement", described="the share of the float model's decisions", unit="share", is_better_high=True
)
KL = Metric(name="kl", described="the mean KL divergence from the float model's probabilities, in nats")
DISTANCE = Metric(
    name="distance", described="the distance from the float model's logits, over their spread", unit="share"
)


def open_directory(path: Path, *, max_length: int | None = None, threads: int = 0) -> EncoderModel:
    """The canonical graph of a model directory, as it is, on ONNX Runtime; raises as `piston.runtime.load` does."""
    bundle = Bundle.open(path)
    interface = bundle.manifest.graphs[ENCODER]
    session = OrtSession.open(path / GRAPH, interface, OrtOptions(optimize=True, threads=threads))
    return model_of(bundle, session, max_length)


def model_of(bundle: Bundle, session: Session, max_length: int | None = None) -> EncoderModel:
    """What `piston.runtime.load` gives, of a session of the graph of a model directory."""
    manifest = bundle.manifest
    model_class: type[EncoderModel] = task_module(tasks, manifest.task).MODEL
    length = manifest.model.max_positions if max_length is None else max_length
    return model_class(manifest, session, bundle.tokenizer(), max_length=length, max_batch=1)


def compare(candidate: Path, reference: Path, rows: NDArray[np.int64], progress: Progress) -> Comparison:
    """The outputs of two model directories of a task on rows [rows, tokens], whole and shortened."""
    found = []
    for path in (candidate, reference):
        with closing(open_directory(path)) as model:
            found.append(row_outputs(model, rows, progress))
            task = task_module(evaluation_tasks, model.manifest.task)
    comparison: Comparison = task.moved(*found)
    return dataclasses.replace(comparison, summary=f"{comparison.summary} of up to {rows.shape[1]} tokens")


def text_outputs(model: EncoderModel, texts: Sequence[str]) -> list[Array]:
    """The output for each text, cut to what the model reads."""
    return model.each(
        texts,
        lambda index, text: model.row(text, what=f"Text {index}", max_tokens=model.max_length),
        lambda _index, _row, output: output.copy(),
    )


def qualities(candidate: TaskModel, reference: TaskModel | None, path: Path) -> dict[str, float]:
    """Figures of the task on labelled examples, and with a reference the relative change of each from its own."""
    module = task_module(evaluation_tasks, candidate.manifest.task)
    values: dict[str, float] = dict(module.quality(candidate, path))
    if reference is None:
        return values
    return with_changes(values, module.quality(reference, path))


def with_changes(values: Mapping[str, float], wanted: Mapping[str, float]) -> dict[str, float]:
    """Figures together with those of a reference, and the relative change of each, positive where it is higher."""
    changes = {
        f"{name}_change": (value - wanted[name]) / abs(wanted[name]) for name, value in values.items() if wanted[name]
    }
    return dict(values) | {f"{name}_reference": value for name, value in wanted.items()} | changes


def shown_qualities(values: Mapping[str, float]) -> str:
    """What `qualities` found, in a line."""
    parts = []
    for name, value in values.items():
        if f"{name}_reference" in values:
            parts.append(f"{name} {value:.4f} (float {values[f'{name}_reference']:.4f})")
        elif not name.endswith(("_change", "_reference")):
            parts.append(f"{name} {value:.4f}")
    return ", ".join(parts)


def needs_labels(metric: Metric) -> bool:
    """Whether a figure of an encoder task is measured on labelled examples."""
    return metric.percent_of == "reference"


def logits_moved(candidate: Sequence[Array], reference: Sequence[Array]) -> dict[str, float]:
    """Values of DISTANCE, AGREEMENT and KL; the last axis of an output is over what is decided between.

    The distance is the root mean square of the logits' differences, over the standard deviation of the reference's.
    """
    found, wanted = (
        np.concatenate([output.reshape(-1, output.shape[-1]) for output in side]) for side in (candidate, reference)
    )
    values = {DISTANCE.name: float(np.sqrt(np.mean((found - wanted) ** 2)) / max(float(wanted.std()), 1e-12))}
    if wanted.shape[1] > 1:
        values[AGREEMENT.name] = float(np.mean(found.argmax(axis=1) == wanted.argmax(axis=1)))
        values[KL.name] = float(mean_kl(wanted, found))
    return values


def mean_kl(reference: Array, candidate: Array) -> float:
    """KL(reference || candidate) of the softmax of logits [rows, choices], in nats, the mean of the rows."""
    wanted, found = (np.log(np.maximum(softmax(logits), 1e-30)) for logits in (reference, candidate))
    return float(np.mean((np.exp(wanted) * (wanted - found)).sum(axis=1)))


def described(values: Mapping[str, float], num_texts: int) -> str:
    """The values of `logits_moved` in a line."""
    parts = [f"logits moved by {values[DISTANCE.name]:.2%} of their spread"]
    if AGREEMENT.name in values:
        parts.append(f"{values[AGREEMENT.name]:.2%} of decisions agree")
        parts.append(f"KL {values[KL.name]:.2g} nats")
    return f"{', '.join(parts)}, on {num_texts} texts"


def row_outputs(model: EncoderModel, rows: NDArray[np.int64], progress: Progress) -> list[Array]:
    """The outputs for rows [rows, tokens], each whole and shortened to PARTS, one after another."""
    begin, end = model.tokenizer.frame
    least = len(begin) + len(end) + 1
    texts: list[list[int]] = []
    for row in rows.tolist():
        sizes = [max(int(len(row) * part), min(least, len(row))) for part in PARTS]
        texts += [[*row[: size - len(end)], *row[len(row) - len(end) :]] for size in sizes]
    found = []
    for done, text in enumerate(texts):
        progress.step("comparing", done, len(texts))
        found += [output.copy() for _, output in model.outputs([text])]
    return found
