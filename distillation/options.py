"""What a distillation is asked for: a student, and how it is trained."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from piston.core.errors import MisuseError
from piston.distillation.pruning import Goal
from piston.distillation.scheme import SCHEMES, Scheme

Dtype = Literal["fp32", "bf16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
LARGEST = 1e9  # of a number that is given: float32 holds its square
RATES = {"model": 1e-4, "layers": 0.1}  # default learning rates


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train.

    One of `steps` and `minutes`, or both, ends the training; 0 steps train nothing. `learning_rate` is of weights, by
    default 1e-4; `scale_rate` of rounding scales, relative to their size; `hidden` weighs the distance of hidden states
    next to the KL divergence; `save_every` is in minutes. With `layerwise` each layer is trained by itself: `steps` are
    of each, `minutes` of all together, and `learning_rate` is relative to the steps of a matrix's grid (a quarter of
    the mean weight where nothing is rounded), by default 0.1. With `dtype` bf16 the products of the
    passes that train are of bfloat16; weights, their rounding, the loss and every judgement are float32.
    """

    steps: int | None = None
    minutes: float | None = None
    rows: int = 4
    layerwise: bool = False
    learning_rate: float | None = None
    scale_rate: float = 1e-4
    temperature: float = 1.0
    hidden: float = 0.0
    seed: int = 0
    save_every: float = 5.0
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise MisuseError(f"No dtype {self.dtype!r} to train in; there are {', '.join(DTYPES)}.")
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
        if self.layerwise and (self.hidden or self.temperature != 1):
            raise MisuseError(
                "--layerwise compares what layers give, not answers; leave --hidden and --temperature out."
            )

    @property
    def rate(self) -> float:
        """The learning rate of weights."""
        return RATES["layers" if self.layerwise else "model"] if self.learning_rate is None else self.learning_rate
