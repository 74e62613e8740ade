"""One thing a doctor has to say: of what, how bad, in a sentence, and the command that fixes it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "missing", "wrong"]  # missing: something optional; wrong: it stands in the way


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding; `fix` is a command or an action, empty where nothing need be done."""

    subject: str
    level: Level
    says: str
    fix: str = ""

    def lines(self) -> list[str]:
        """For people."""
        shown = self.says.rstrip(".")
        return [f"{self.level:8}{self.subject}: {shown}", *([f"{'':8}fix: {self.fix}"] if self.fix else [])]
