"""One thing a doctor has to say: of what, how bad, in a sentence, and the command that mends it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "missing", "wrong"]  # missing: something optional; wrong: it stands in the way


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding; `mend` is a command or an action, empty where nothing need be done."""

    subject: str
    level: Level
    says: str
    mend: str = ""

    def lines(self) -> list[str]:
        """For people."""
        shown = self.says.rstrip(".")
        return [f"{self.level:8}{self.subject}: {shown}", *([f"{'':8}mend: {self.mend}"] if self.mend else [])]
