"""The training loop: gradients of the distance to the teacher, row by row; its state on disk, to resume from."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW, lr_scheduler

from piston.core.console import Progress, time_left
from piston.core.errors import Error, MisuseError
from piston.distillation.loss import Judged, cross_entropy, hidden_distance, kl_divergence
from piston.distillation.options import TrainingOptions
from piston.distillation.rounding import StudentLinear
from piston.distillation.source import Data, batch
from piston.distillation.teacher import Teacher

STATE = "state.pt"
PASS_LOGITS = 1 << 26  # of the rows that pass the student together, at most: 256 MiB of float32
BETAS = (0.9, 0.98)  # of AdamW
WARM_UP, LAST = 0.05, 0.05  # shares: of the run in which the rate rises, and of the rate that is left at its end


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
    layers: int = 0  # that are trained, where each is trained by itself


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
        groups = [{"params": others, "lr": options.rate}, {"params": scales, "lr": options.scale_rate}]
        self.optimizer = AdamW([group for group in groups if group["params"]], betas=BETAS, weight_decay=0.0)
        self.schedule = lr_scheduler.LambdaLR(self.optimizer, lambda _: rate_at(self.fraction))

    @property
    def fraction(self) -> float:
        """Of the training that is over, 0 to 1: the larger of its steps and its time."""
        steps, minutes = self.options.steps, self.options.minutes
        by_steps = 0.0 if steps is None else self.run.step / steps if steps else 1.0
        by_time = 0.0 if minutes is None else self.run.seconds / (60 * minutes)
        return min(1.0, max(by_steps, by_time))

    @property
    def epochs(self) -> float:
        """How often the data was read."""
        return self.run.step * self.options.rows / len(self.data.train)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """What is inside counts as time of training."""
        began = time.monotonic()
        yield
        self.run.seconds += time.monotonic() - began

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
        self.run = Run(state["step"], state["seconds"], moments, state["layers"])
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
            with self.timed():
                losses.append(self._step())
            self.run.step += 1
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
            "layers": self.run.layers,
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
        rows = batch(len(self.data.train), self.run.step, options.rows, options.seed)
        together = max(
            1, PASS_LOGITS // (self.data.train.shape[1] * self.student.get_output_embeddings().weight.shape[0])
        )
        total = 0.0
        for first in range(0, len(rows), together):  # weights are rounded once for all rows of a pass
            loss = self._loss(rows[first : first + together]) / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise Error(f"The loss is {total} at step {self.run.step + 1}; give a smaller --lr.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        """The sum over rows, by their numbers in the data."""
        options, device, with_hidden = self.options, self.student.device, bool(self.pairs)
        ids = torch.from_numpy(self.data.train[rows]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bf16"):
            found = self.student(ids, use_cache=False, output_hidden_states=with_hidden)
        losses = []
        for place, row in enumerate(rows):
            answer = self.teacher.answer(int(row), self.data.train[row])
            loss = kl_divergence(answer.logits, found.logits[place].float(), options.temperature)
            if with_hidden:
                assert answer.hidden is not None
                own = torch.stack([found.hidden_states[layer][place].float() for layer, _ in self.pairs])
                theirs = answer.hidden[[layer for _, layer in self.pairs]]
                loss = loss + options.hidden * hidden_distance(theirs, own)
            losses.append(loss)
        return torch.stack(losses).sum()

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

    @property
    def seconds_left(self) -> float:
        """By the pace so far; infinite before the first step."""
        return self.run.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf

    def _left(self) -> str:
        return time_left(self.seconds_left) if self.fraction < 1 else ""

    def _show(self, loss: float, progress: Progress) -> None:
        total = max(self.run.step, round(self.run.step / max(self.fraction, 1e-9)))
        progress.step(f"training, loss {loss:.4f}", self.run.step, total, self.seconds_left)


def rate_at(fraction: float) -> float:
    """Of the learning rate, where `fraction` of the training is over: a linear rise, then half a cosine down."""
    if fraction < WARM_UP:
        return (fraction + WARM_UP / 10) / (WARM_UP * 1.1)
    through = (fraction - WARM_UP) / (1 - WARM_UP)
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * through)) / 2
