"""Two encoder-decoders along the same answers: both decoders read them, and their next tokens are compared."""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER, ENCODER
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.gates import Metric
from piston.core.tasks import task_module
from piston.evaluation import tasks as evaluation_tasks
from piston.evaluation.distributions import compare
from piston.evaluation.tasks import Comparison
from piston.runtime.backends.engine import EncoderDecoderEngine, Logits, Source
from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder
from piston.runtime.backends.session import OrtOptions
from piston.runtime.bundle import Bundle

NUM_TOKENS = 48  # of an answer to a text, at most
LONGEST = 448  # tokens that an engine of a model directory holds, at most: those of Whisper
KL = Metric(name="kl", described="the mean KL divergence from the float model's next tokens, in nats")
TOP1 = Metric(
    name="top1", described="the share of the float model's likeliest tokens", unit="share", is_better_high=True
)


@dataclass(frozen=True, slots=True)
class ForcedAnswer:
    """A source, and the tokens that the decoder is made to read (teacher forcing).

    Args:
        source: what the encoder reads.
        prompt_ids: tokens that begin every answer.
        token_ids: the answer's, without the token that ends it.
    """

    source: Source
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]

    @property
    def read_ids(self) -> list[int]:
        """All that the decoder reads; the logits behind the prompt and each token of the answer are compared."""
        return [*self.prompt_ids, *self.token_ids]


class EncoderDecoder(Protocol):
    """What the runtime makes of both graphs: TextToText, SpeechRecognizer."""

    manifest: Manifest
    target: str
    engine: EncoderDecoderEngine

    def close(self) -> None:
        """Free the engine."""


def hash_answers(answers: Sequence[ForcedAnswer]) -> str:
    """SHA-256 of sources and answers."""
    digest = hashlib.sha256()
    for answer in answers:
        for name, array in sorted(answer.source.feeds.items()):
            digest.update(f"{name} {array.shape} {array.dtype} ".encode() + np.ascontiguousarray(array).tobytes())
        digest.update(f"{answer.prompt_ids} {answer.token_ids}\n".encode())
    return digest.hexdigest()


def open_directory(
    path: Path, *, capacity: int = LONGEST, max_source: int, num_slots: int = 1, options: OrtOptions | None = None
) -> OrtEncoderDecoder:
    """The canonical graphs of a model directory, as they are, on ONNX Runtime."""
    manifest = Manifest.read(path)
    return OrtEncoderDecoder.open_both(
        (path / ENCODER / GRAPH, manifest.graphs[ENCODER]),
        (path / DECODER / GRAPH, manifest.cache, manifest.cross),
        num_slots=num_slots,
        capacity=min(capacity, manifest.model.max_positions),
        max_source=manifest.cross.num_positions or max_source,
        options=options or OrtOptions(optimize=True),
    )


def open_model(
    path: Path, *, capacity: int = LONGEST, max_source: int, num_slots: int = 1, threads: int = 0
) -> EncoderDecoder:
    """A model directory as what `piston.runtime.load` makes of its bundle."""
    bundle = Bundle.open(path)
    options = OrtOptions(optimize=True, threads=threads)
    engine = open_directory(path, capacity=capacity, max_source=max_source, num_slots=num_slots, options=options)
    model: EncoderDecoder = task_module(evaluation_tasks, bundle.manifest.task).MODEL(
        bundle.manifest, engine, bundle.tokenizer()
    )
    return model


def compare_answers(
    candidate: Path, reference: Path, answers: Sequence[ForcedAnswer], progress: Progress, sources: str
) -> Comparison:
    """KL and TOP1 over answers, teacher-forced on both model directories.

    `sources` is what there are answers to, such as "texts".

    Raises:
        EngineError: a model does not run, or computes numbers that are not finite.
    """
    capacity = max(len(answer.read_ids) for answer in answers)
    longest = max(answer.source.length for answer in answers)
    with (
        closing(open_directory(reference, capacity=capacity, max_source=longest)) as first,
        closing(open_directory(candidate, capacity=capacity, max_source=longest)) as second,
    ):
        return compare_engines(second, first, answers, progress, sources)


def compare_engines(
    candidate: EncoderDecoderEngine,
    reference: EncoderDecoderEngine,
    answers: Sequence[ForcedAnswer],
    progress: Progress,
    sources: str,
) -> Comparison:
    """As `compare_answers`, of engines that are open; answers are cut to what both hold."""
    kl, same = list[float](), list[bool]()
    capacity = min(engine.cache.capacity for engine in (candidate, reference))
    for done, whole in enumerate(answers):
        progress.step("comparing", done, len(answers))
        answer = replace(whole, token_ids=whole.token_ids[: capacity - len(whole.prompt_ids)])
        expected, found = (_read(engine, answer) for engine in (reference, candidate))
        result = compare(expected, found, expected.argmax(axis=1).tolist())
        kl += result.kl.tolist()
        same += result.is_same_top.tolist()
    values = {KL.name: float(np.mean(kl)), TOP1.name: float(np.mean(same))}
    summary = (
        f"KL divergence from the float model {values['kl']:.4f} nats, {values['top1']:.1%} of its likeliest tokens, "
        f"over {len(kl)} tokens of answers to {len(answers)} {sources}"
    )
    return Comparison(values=values, summary=summary)


def _read(engine: EncoderDecoderEngine, answer: ForcedAnswer) -> Logits:
    """The logits behind the prompt and behind each token of the answer, float32 [tokens + 1, vocab]."""
    slot = engine.cache.admit()
    engine.encode(slot, answer.source)
    logits = engine.prefill(slot, answer.read_ids, len(answer.token_ids) + 1).copy()
    engine.cache.release(slot)
    return logits
