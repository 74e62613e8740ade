"""One finding of `piston doctor`: the subject, its level, one sentence, and the command that fixes it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "missing", "wrong"]  # missing: something optional; wrong: something that must be fixed


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding; `fix` is a command or an action, empty where nothing needs to be done."""

    subject: str
    level: Level
    says: str
    fix: str = ""

    def lines(self) -> list[str]:
        """The finding as text."""
        shown = self.says.rstrip(".")
        return [f"{self.level:8}{self.subject}: {shown}", *([f"{'':8}fix: {self.fix}"] if self.fix else [])]
