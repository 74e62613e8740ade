"""What a distillation is asked for."""

from dataclasses import dataclass, field
from pathlib import Path

from piston.core.errors import MisuseError
from piston.distillation.pruning import Goal
from piston.distillation.scheme import SCHEMES, Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """What the student is.

    `prune` says what is left of the teacher, `config` is the config.json of another student; `scheme` and `block` say
    how it rounds, `start` is a calibrated model directory to begin from; `cache_bytes` bounds the teacher's kept
    answers.
    """

    prune: Goal = field(default_factory=Goal)
    config: Path | None = None
    scheme: Scheme = "fp"
    block: int = 0
    start: Path | None = None
    seq_len: int | None = None  # DEFAULT_LENGTH, or the model's positions where it has fewer
    cache_bytes: int = 4 * 10**9
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.seq_len is not None and self.seq_len < 2:  # noqa: PLR2004
            raise MisuseError(f"--seq-len {self.seq_len} must be at least 2: a token, and one that follows it.")
        if self.scheme not in SCHEMES:
            raise MisuseError(f"No scheme {self.scheme!r}; there are {', '.join(SCHEMES)}.")
        if self.config is not None and self.prune.is_structured:
            raise MisuseError("--student gives the student's sizes; leave --prune layers, ffn and heads out.")
        if self.scheme == "fp" and self.block:
            raise MisuseError("--block is for a student that rounds; add --scheme w4 or w8.")
        if self.start is not None and self.block:
            raise MisuseError("--start says how weights are blocked; leave --block out.")
        if self.start is not None and (self.config is not None or self.prune.is_structured or self.prune.sparsity):
            raise MisuseError(
                "--start is the teacher's own calibration; distill the smaller student first, then round it."
            )
        if self.scheme == "w8a8" and self.start is None:
            raise MisuseError(
                "w8a8 needs scales of activations: give --start DIR, which `piston calibrate --scheme w8a8` wrote."
            )
