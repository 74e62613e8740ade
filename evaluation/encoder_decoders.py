"""Two encoder-decoders along the same answers: the reference's greedy tokens, read by both."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER, ENCODER
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.gates import Metric
from piston.evaluation.distributions import compare
from piston.runtime.backends.engine import Logits, Source
from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder
from piston.runtime.backends.session import OrtOptions

NUM_TOKENS = 24  # of an answer, at most
KL = Metric(name="kl", described="the mean KL divergence from the float model's next tokens, in nats")
TOP1 = Metric(name="top1", described="the share of the float model's greedy tokens", unit="share", is_better_high=True)


def open_directory(path: Path, max_source: int) -> OrtEncoderDecoder:
    """The canonical graphs of a model directory, as they are, on ONNX Runtime, with one slot."""
    manifest = Manifest.read(path)
    return OrtEncoderDecoder.open_both(
        (path / ENCODER / GRAPH, manifest.graphs[ENCODER]),
        (path / DECODER / GRAPH, manifest.cache, manifest.cross),
        num_slots=1,
        capacity=min(NUM_TOKENS + 2, manifest.model.max_positions),
        max_source=manifest.cross.num_positions or max_source,
        options=OrtOptions(optimize=True),
    )


def moved(
    candidate: Path, reference: Path, sources: Sequence[Source], progress: Progress
) -> tuple[Mapping[str, float], int]:
    """Values of KL and TOP1 over the reference's greedy answers to the sources, and how many tokens they have.

    Raises:
        EngineError: a model does not run, or computes numbers that are not finite.
    """
    manifest = Manifest.read(reference)
    start, ends = list(manifest.settings["decoder_start"]), set(manifest.tokenizer.eos_token_ids)
    longest = max(source.length for source in sources)
    kl, same = list[float](), list[bool]()
    with closing(open_directory(reference, longest)) as first, closing(open_directory(candidate, longest)) as second:
        for done, source in enumerate(sources):
            progress.step("comparing", done, len(sources))
            answer, expected = _answer(first, source, start, ends)
            found = _read(second, source, [*start, *answer[:-1]], len(answer))
            result = compare(expected, found, answer)
            kl += result.kl.tolist()
            same += result.is_same_top.tolist()
    return {KL.name: float(np.mean(kl)), TOP1.name: float(np.mean(same))}, len(kl)


def _answer(engine: OrtEncoderDecoder, source: Source, start: list[int], ends: set[int]) -> tuple[list[int], Logits]:
    """A greedy answer, and the logits [tokens, vocab] that each of its tokens was chosen by."""
    slot, answer, rows = engine.cache.admit(), list[int](), list[Logits]()
    engine.encode(slot, source)
    logits = engine.prefill(slot, start)[-1]
    for _ in range(engine.cache.capacity - len(start)):
        rows.append(logits.copy())
        answer.append(int(logits.argmax()))
        if answer[-1] in ends:
            break
        logits = engine.step({slot: answer[-1]})[slot]
    engine.cache.release(slot)
    return answer, np.stack(rows)


def _read(engine: OrtEncoderDecoder, source: Source, token_ids: list[int], count: int) -> Logits:
    """The logits of the last `count` tokens."""
    slot = engine.cache.admit()
    engine.encode(slot, source)
    logits = engine.prefill(slot, token_ids, count)
    engine.cache.release(slot)
    return logits
