"""The training loop: gradients of the distance to the teacher, row by row; its state on disk, to resume from."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, lr_scheduler

from piston.core.console import Progress
from piston.core.errors import Error, MisuseError
from piston.distillation.loss import Judged, cross_entropy, hidden_distance, kl_divergence
from piston.distillation.rounding import StudentLinear
from piston.distillation.source import Data
from piston.distillation.teacher import Answer, Teacher

STATE = "state.pt"
LARGEST = 1e9  # of a number that is given: float32 holds its square
WARM_UP, LAST = 0.05, 0.05  # shares: of the run in which the rate rises, and of the rate that is left at its end


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train.

    One of `steps` and `minutes`, or both, ends the training; 0 steps train nothing. `scale_rate` is the learning rate
    of rounding scales, relative to their size; `hidden` weighs the distance of hidden states next to the KL divergence;
    `save_every` is in minutes.
    """

    steps: int | None = None
    minutes: float | None = None
    rows: int = 4
    learning_rate: float = 1e-4
    scale_rate: float = 1e-3
    temperature: float = 1.0
    hidden: float = 0.0
    seed: int = 0
    save_every: float = 5.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise MisuseError("Give --steps N or --minutes M: how long to train.")
        if self.steps is not None and self.steps < 0:
            raise MisuseError(f"--steps {self.steps} must be 0 or more; 0 makes the student and trains nothing.")
        if not 0 <= self.seed < 1 << 63:
            raise MisuseError(f"--seed {self.seed} must be 0 or more, and below 2**63.")
        for option, value in (
            ("minutes", self.minutes),
            ("rows", self.rows),
            ("lr", self.learning_rate),
            ("temperature", self.temperature),
            ("save-every", self.save_every),
        ):
            if value is not None and not 0 < value <= LARGEST:
                raise MisuseError(f"--{option} {value} must be more than 0, and {LARGEST:.0e} at most.")
        for option, value in (("hidden", self.hidden), ("scale-lr", self.scale_rate)):
            if not 0 <= value <= LARGEST:
                raise MisuseError(f"--{option} {value} must be from 0 to {LARGEST:.0e}.")


@dataclass(frozen=True, slots=True)
class Moment:
    """The run at one step: seconds of training, the mean loss since the last moment, and the held-out rows."""

    step: int
    seconds: float
    loss: float | None
    held_out: Judged


@dataclass(slots=True)
class Run:
    """What was reached."""

    step: int = 0
    seconds: float = 0.0
    moments: list[Moment] = field(default_factory=list)


class Trainer:
    """Trains a student towards a teacher.

    Args:
        student: a model of transformers; parameters that require gradients are trained.
        linears: its linears that round.
        teacher: of the same vocabulary.
        data: rows to train on and to judge by.
        options: how.
        place: the directory of the state.
        pairs: layers whose hidden states are compared, as (student's, teacher's place in what `teacher` answers).
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        student: Any,
        linears: Mapping[str, StudentLinear],
        teacher: Teacher,
        data: Data,
        options: TrainingOptions,
        place: Path,
        pairs: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.student, self.teacher, self.data, self.options = student, teacher, data, options
        self.path, self.pairs, self.run = place / STATE, pairs, Run()
        found = [
            parameter
            for linear in linears.values()
            for parameter in (linear.growth, linear.input_growth)
            if parameter is not None
        ]
        scales = list({id(parameter): parameter for parameter in found}.values())  # some are shared
        ours = {id(parameter) for parameter in scales}
        others = [item for item in student.parameters() if item.requires_grad and id(item) not in ours]
        groups = [{"params": others, "lr": options.learning_rate}, {"params": scales, "lr": options.scale_rate}]
        self.optimizer = AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), weight_decay=0.0)
        self.schedule = lr_scheduler.LambdaLR(self.optimizer, lambda _: rate_at(self.fraction))

    @property
    def fraction(self) -> float:
        """Of the training that is over, 0 to 1: the larger of its steps and its time."""
        steps, minutes = self.options.steps, self.options.minutes
        by_steps = 0.0 if steps is None else self.run.step / steps if steps else 1.0
        by_time = 0.0 if minutes is None else self.run.seconds / (60 * minutes)
        return min(1.0, max(by_steps, by_time))

    def resume(self, key: str) -> bool:
        """Take over the state of an earlier run with the same key; whether there was one.

        Raises:
            MisuseError: the state is of a run with other settings.
        """
        if not self.path.is_file():
            return False
        state = torch.load(self.path, map_location=self.student.device, weights_only=True)
        if state["key"] != key:
            raise MisuseError(
                f"{self.path.parent} holds a run of another teacher, other data or other options; remove it, or give "
                "the options it was started with."
            )
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        moments = [Moment(item[0], item[1], item[2], Judged(*item[3])) for item in state["moments"]]
        self.run = Run(state["step"], state["seconds"], moments)
        return True

    def begin(self, remark: Callable[[str], None]) -> Moment:
        """Judge the student as it is before the first step, unless an earlier run did."""
        if not self.run.moments:
            self._judge([], remark)
        return self.run.moments[0]

    def train(self, key: str, progress: Progress, remark: Callable[[str], None]) -> Run:
        """Train, behind `begin`, until the steps or the time are over; the state is written every few minutes.

        Raises:
            Error: the loss is not finite, or the disk is full; the state of the last saved step stays.
        """
        losses, saved = list[float](), time.monotonic()
        while self.fraction < 1:
            began = time.monotonic()
            losses.append(self._step())
            self.run.step += 1
            self.run.seconds += time.monotonic() - began
            self.schedule.step()
            self._show(losses[-1], progress)
            if time.monotonic() - saved > 60 * self.options.save_every and self.fraction < 1:
                self._judge(losses, remark)
                self.save(key)
                saved = time.monotonic()
        if self.run.step > self.run.moments[-1].step:
            self._judge(losses, remark)
            self.save(key)
        return self.run

    def save(self, key: str) -> None:
        """Write the state, whole or not at all."""
        state = {
            "key": key,
            "step": self.run.step,
            "seconds": self.run.seconds,
            "moments": [(item.step, item.seconds, item.loss, tuple(item.held_out)) for item in self.run.moments],
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        part = self.path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        os.replace(part, self.path)  # noqa: PTH105 - atomic

    @torch.no_grad()
    def judge(self) -> Judged:
        """The student on the held-out rows."""
        kl, equal, found, exact = [], [], [], []
        for number, row in enumerate(self.data.held_out):
            answer, ids = self.teacher.answer(-1 - number, row), torch.from_numpy(row).to(self.student.device)
            logits = self.student(ids[None], use_cache=False).logits[0]
            kl.append(kl_divergence(answer.logits, logits))
            equal.append((logits.argmax(dim=-1) == answer.logits.argmax(dim=-1)).float().mean())
            found.append(cross_entropy(logits, ids))
            exact.append(cross_entropy(answer.logits, ids))
        means = [float(torch.stack(values).mean()) for values in (kl, equal, found, exact)]
        return Judged(means[0], means[1], math.exp(min(means[2], 700)), math.exp(min(means[3], 700)))

    def _step(self) -> float:
        options = self.options
        rows = self.data.batch(self.run.step, options.rows, options.seed)
        total = 0.0
        for row in rows:
            ids = self.data.train[row]
            loss = self._loss(self.teacher.answer(int(row), ids), torch.from_numpy(ids)) / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise Error(f"The loss is {total} at step {self.run.step + 1}; give a smaller --lr.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, answer: Answer, ids: Tensor) -> Tensor:
        with_hidden = bool(self.pairs)
        found = self.student(ids[None].to(self.student.device), use_cache=False, output_hidden_states=with_hidden)
        loss = kl_divergence(answer.logits, found.logits[0], self.options.temperature)
        if with_hidden:
            assert answer.hidden is not None
            own = torch.stack([found.hidden_states[place][0] for place, _ in self.pairs])
            theirs = answer.hidden[[place for _, place in self.pairs]]
            loss = loss + self.options.hidden * hidden_distance(theirs, own)
        return loss

    def _judge(self, losses: list[float], remark: Callable[[str], None]) -> None:
        judged = self.judge()
        mean = sum(losses) / len(losses) if losses else None
        self.run.moments.append(Moment(self.run.step, self.run.seconds, mean, judged))
        losses.clear()
        trained = "" if mean is None else f"loss {mean:.4f}, "
        remark(
            f"step {self.run.step:,}: {trained}held out: KL {judged.kl:.4f} nats, top-1 {judged.top1:.1%}, perplexity "
            f"{judged.student_ppl:.2f} (teacher {judged.teacher_ppl:.2f}){self._left()}"
        )

    def _left(self) -> str:
        if not 0 < self.fraction < 1:
            return ""
        seconds = round(self.run.seconds * (1 - self.fraction) / self.fraction)
        return f", {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, loss: float, progress: Progress) -> None:
        steps = self.options.steps
        total = steps if steps is not None else max(self.run.step, round(self.run.step / max(self.fraction, 1e-9)))
        progress.step(f"training, loss {loss:.4f}", self.run.step, total)


def rate_at(fraction: float) -> float:
    """Of the learning rate, where `fraction` of the training is over: a linear rise, then half a cosine down."""
    if fraction < WARM_UP:
        return (fraction + WARM_UP / 10) / (WARM_UP * 1.1)
    through = (fraction - WARM_UP) / (1 - WARM_UP)
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * through)) / 2
