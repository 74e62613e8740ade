"""The report of an evaluation as frozen dataclasses; `to_json` follows docs/schemas/eval.json."""

import dataclasses
from typing import Any, Literal

from piston.core.bundle.manifest import Kind
from piston.core.gates import GateResult
from piston.core.schema import to_plain
from piston.core.statistics import ConfidenceInterval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The scored text, and how it was scored."""

    path: str
    sha256: str
    num_documents: int
    num_tokens: int  # of the text
    num_scored: int
    num_bytes: int  # of the scored tokens
    window: int
    stride: int
    num_windows: int
    prefix_ids: tuple[int, ...]  # in front of every window
    rule: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One of the two models on the text."""

    path: str
    kind: Kind
    name: str
    scheme: str
    target: str  # of the engine; a model directory runs as it is
    nll: ConfidenceInterval  # nats a token
    perplexity: ConfidenceInterval
    bits_per_byte: ConfidenceInterval | None  # None where the scored tokens are not text
    tokens_per_s: float  # read by the engine, context included


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """KL(reference || candidate) over the scored tokens, in nats."""

    mean: ConfidenceInterval
    p50: float
    p99: float
    max: float
    num_zero: int  # at or below the first edge
    edges: tuple[float, ...]  # of the histogram; below the first and above the last count as inside
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContextBin:
    """Agreement of tokens with first_context .. last_context positions before them."""

    first_context: int
    last_context: int
    num_tokens: int
    top1: ConfidenceInterval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The candidate against the reference, token by token."""

    kl: Divergences
    top1: ConfidenceInterval
    logit_distance: float
    perplexity_ratio: ConfidenceInterval
    by_context: tuple[ContextBin, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowScore:
    """One window."""

    document: int
    start: int
    num_scored: int
    perplexity: float
    reference_perplexity: float | None
    kl: float | None
    top1: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DivergingToken:
    """One model's token where the answers differ; the margin is in nats over its own second choice."""

    token_id: int
    text: str
    margin: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first token of an answer that differs, counted from 0."""

    position: int
    reference: DivergingToken
    candidate: DivergingToken


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Both answers to one prompt; `divergence` is None if they are equal."""

    prompt: str
    divergence: Divergence | None
    reference_text: str
    candidate_text: str

    @property
    def is_same(self) -> bool:
        """Whether the answers are equal."""
        return self.divergence is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Greedy answers to the prompts; `same` is the share of equal ones."""

    num_prompts: int
    max_tokens: int
    same: ConfidenceInterval
    prompts: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole report; fields that need a reference are None without one."""

    data: Data
    candidate: Model
    windows: tuple[WindowScore, ...]
    reference: Model | None = None
    agreement: Agreement | None = None
    answers: Answers | None = None
    gates: tuple[GateResult, ...] = ()
    piston: str = ""  # version
    schema: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, as --json prints them."""
        plain: dict[str, Any] = to_plain(self)
        return plain
