"""The check that every quantized directory passes before it gets its name: a text it has not seen, and a generation.

The candidate and the float model read the same rows side by side. The canonical graph runs as it is, which is slow
where it is in integers; so the rows are few. An INT8 cache is also checked on a row of four times the calibration
length: positions that calibration has not seen.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.console import Progress
from piston.core.errors import MisuseError, ShortfallError
from piston.core.gates import Gate, GateResult, Metric, MissedGateError, parse_gate
from piston.core.statistics import ConfidenceInterval
from piston.core.tasks import task_module, task_names
from piston.data.held_out import HeldOut
from piston.data.packing import Ids
from piston.data.rows import hash_rows
from piston.evaluation import tasks
from piston.evaluation.corpus import Corpus, Document
from piston.evaluation.evaluate import EvalOptions, evaluate
from piston.evaluation.metrics import measured
from piston.evaluation.report import Report
from piston.evaluation.subject import Opened, Subject
from piston.evaluation.table import change, number, share
from piston.evaluation.windows import Windowing
from piston.runtime.generate.generation import run
from piston.runtime.sampling.params import SamplingParams

ROW_LEN = 256  # tokens of a row that are scored: 2,048 in all take half a minute on two cores (135M, w8a8)
FAR = 4  # times the calibration length
PROMPT_LEN, ANSWER_LEN = 16, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What the result may cost (such as "ppl<=2%"; without one, the scheme's default), and the text that shows it.

    `labelled` is a file of examples for figures of tasks other than language models', such as "accuracy>=-0.5%".
    """

    bounds: tuple[str, ...] = ()
    data: str | Path | None = None
    labelled: Path | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """What was found: near by rows as long as calibration's at most, far beyond them for an INT8 cache."""

    near: Report
    far: Report | None
    gates: tuple[GateResult, ...]
    generated: str
    held_out: HeldOut

    @property
    def reports(self) -> list[Report]:
        """Near, and far where it was measured: every bound holds for each."""
        return [report for report in (self.near, self.far) if report is not None]

    @property
    def summaries(self) -> list[str]:
        """Each comparison in a line."""
        return [summary(report) for report in self.reports]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "data": self.held_out.source,
            "sha256": self.held_out.sha256,
            "overlap": self.held_out.overlap.share,
            "near": figures(self.near),
            "far": None if self.far is None else figures(self.far),
            "bounds": [dataclasses.asdict(gate) for gate in self.gates],
            "generated": self.generated,
        }


def check(
    candidate: Path,
    reference: Path,
    held_out: HeldOut,
    bounds: Sequence[Gate[Metric]],
    *,
    far: bool,
    progress: Progress,
) -> Check:
    """Evaluate and generate; `far` adds the long row.

    Raises:
        MissedGateError: a bound is not met; the message has the figures.
        EngineError: the model computes NaN or infinity, or does not run.
    """
    rows = held_out.ids
    near_len = min(rows.shape[1], ROW_LEN)
    subjects = [Subject.read(candidate), Subject.read(reference)]
    limit = min(subject.max_positions for subject in subjects)
    far_len = min(FAR * rows.shape[1], rows.size, limit) if far else 0
    capacity = max(near_len, far_len, PROMPT_LEN + ANSWER_LEN)
    opened = [subject.open(num_slots=1, capacity=min(capacity, limit)) for subject in subjects]
    try:
        near = _evaluate(opened, rows[:, :near_len], progress)
        distant = _evaluate(opened, rows.reshape(1, -1)[:, :far_len], progress) if far else None
        generated = _generate(opened[0], rows[0], min(capacity, limit))
    finally:
        for item in opened:
            item.model.close()
    reports = [report for report in (near, distant) if report is not None]
    gates = tuple(gate.judge(measured(report)) for report in reports for gate in bounds)
    found = Check(near, distant, gates, generated, held_out)
    if not all(gate.is_met for gate in gates):
        raise MissedGateError(_complaint(found), gates)
    return found


def evaluation_of(task: str) -> Any:
    """The evaluation of a task; raises MisuseError for one whose models are not quantized."""
    if task not in task_names(tasks):
        raise MisuseError(f"Models for {task} are not quantized yet; build the float model directory as it is.")
    return task_module(tasks, task)


def bounds_of(texts: Sequence[str], scheme: str, task: str = TEXT_GENERATION) -> tuple[Gate[Metric], ...]:
    """The given bounds, or the default one of the scheme, on figures of the task."""
    module = evaluation_of(task)
    return tuple(parse_gate(text, module.METRICS) for text in texts or [module.DEFAULTS[scheme]])


def corpus_of(rows: Ids, source: str) -> Corpus:
    """Each row a text of its own."""
    documents = tuple(Document((), tuple(row.tolist())) for row in rows)
    return Corpus(path=source, sha256=hash_rows(rows), documents=documents)


def whole_rows(rows: Ids) -> Windowing:
    """One window for each row."""
    return Windowing(length=rows.shape[1], stride=max(1, rows.shape[1] // 2))


def figures(report: Report) -> dict[str, Any]:
    """The comparison in a few numbers, with intervals of 95 % where there are several rows."""
    found = report.agreement
    assert found is not None
    return {
        "tokens": report.data.num_scored,
        "row_len": report.data.window,
        "ppl_change": _minus_one(found.perplexity_ratio),
        "kl": dataclasses.asdict(found.kl.mean),
        "top1": dataclasses.asdict(found.top1),
    }


def summary(report: Report) -> str:
    """The comparison in a line."""
    found = report.agreement
    assert found is not None
    return (
        f"perplexity {change(found.perplexity_ratio)}, KL {number(found.kl.mean.value)} nats, top-1 "
        f"{share(found.top1)} on {report.data.num_scored:,} tokens in rows of {report.data.window:,}"
    )


def _evaluate(opened: Sequence[Opened], rows: Ids, progress: Progress) -> Report:
    corpus = corpus_of(rows, "held-out rows")
    return evaluate(opened[0], opened[1], corpus, EvalOptions(windowing=whole_rows(rows)), progress)


def _generate(opened: Opened, row: Ids, capacity: int) -> str:
    """Go on from the beginning of a row; raises EngineError where that fails."""
    prompt = row[: min(PROMPT_LEN, capacity - 1)].tolist()
    sampling = SamplingParams(max_tokens=min(ANSWER_LEN, capacity - len(prompt)), ignore_eos=True)
    generation = opened.model.prepare(prompt, sampling)
    for _ in run(opened.model.engine, [generation]):
        pass
    completion = generation.completion()
    if not completion.token_ids:
        raise ShortfallError("The quantized model generates no token. Nothing was written.")
    return completion.text


def _complaint(found: Check) -> str:
    missed = next(gate for gate in found.gates if not gate.is_met)
    return (
        f"Checked on text it was not calibrated with, the quantized model is outside its bound: {missed} "
        f"({'; '.join(found.summaries)}). Nothing was written; leave more in float (--budget, --keep-worst, "
        "--keep), or state with --require what it may cost."
    )


def _minus_one(ratio: ConfidenceInterval) -> dict[str, float | None]:
    return {
        name: None if value is None or math.isnan(value) else value - 1
        for name, value in dataclasses.asdict(ratio).items()
    }
