"""What a distillation reached."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from piston.distillation.importance import Ranking
from piston.distillation.training import Moment, Run


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came out."""

    teacher: str
    architecture: str
    parameters: tuple[int, int]  # of the teacher and the student
    ranking: Ranking
    run: Run
    epochs: float
    num_train_rows: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json and the student's record."""
        return {
            "teacher": self.teacher,
            "architecture": self.architecture,
            "parameters": {"teacher": self.parameters[0], "student": self.parameters[1]},
            "steps": self.run.step,
            "seconds": self.run.seconds,
            "epochs": self.epochs,
            "train_rows": self.num_train_rows,
            "moments": [dataclasses.asdict(item) | {"held_out": item.held_out._asdict()} for item in self.run.moments],
            "ranking": self.ranking.to_json(),
            "notes": list(self.notes),
        }

    @property
    def ends(self) -> tuple[Moment, Moment]:
        """Before and after training."""
        return self.run.moments[0], self.run.moments[-1]
