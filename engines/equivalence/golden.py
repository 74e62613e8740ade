"""The answers that travel in a bundle, each engine's own; the canonical graph's for those that cannot run here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from piston.core.bundle.golden import Golden, GoldenAnswer, GoldenByTarget, GoldenExample
from piston.core.bundle.interface import DECODER, ENCODER, MODULE, source_encoder_interface
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.tasks import task_module
from piston.engines.equivalence.answers import reference_of
from piston.engines.equivalence.ragged import inner_session
from piston.engines.equivalence.reference_options import reference_options
from piston.runtime import kernels, tasks
from piston.runtime.backends.engine import Engine, Source
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder
from piston.runtime.backends.registry import Sizes, open_engine
from piston.runtime.backends.session import OrtOptions, OrtSession
from piston.runtime.bundle import Bundle
from piston.runtime.golden_sounds import encoded, write_sounds
from piston.runtime.tasks.module import Module
from piston.runtime.verify import SourceOf, margin_of, read, source_of
from piston.runtime.verify_outputs import distance, golden_examples, golden_of, recorded

NUM_TOKENS = 16
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Q: Wie heißt die Hauptstadt von Italien?\nA:",
)
DIGITS = 4  # of a margin: what it is compared with is never that small


Recorder = Callable[[Path, Path, Manifest, Sequence[EngineSpec]], None]


def recorder_of(model: Manifest) -> Recorder | None:
    """What writes verify.json for a model of this task; None where `piston verify` has nothing for it."""
    if DECODER in model.graphs:
        return record_answers
    if MODULE in model.graphs:
        return record_examples
    module = task_module(tasks, model.task)
    return record_outputs if hasattr(module, "MODEL") else None


def record_outputs(work: Path, canonical: Path, model: Manifest, engines: Sequence[EngineSpec]) -> None:
    """Write work/verify.json with outputs of a graph without states."""
    model_class = task_module(tasks, model.task).MODEL
    tokenizer = Bundle(canonical.parent, model).tokenizer()

    def recorded(session: OrtSession, length: int) -> Golden:
        with model_class(model, session, tokenizer, max_length=length, max_batch=1) as opened:
            return golden_of(opened)

    found: dict[str, Golden] = {}
    for spec in engines:
        length = int(spec.requested["max_length"])
        if spec.target in ("ort-cpu", kernels.TARGET):
            options = OrtOptions(kernels=spec.target == kernels.TARGET)
            found[spec.target] = recorded(OrtSession.open(work / spec.path, model.graphs[ENCODER], options), length)
        else:
            with reference_of(canonical, model, work) as path:
                golden = recorded(inner_session(path, reference_options(ir.load(path).graph)), length)
                found[spec.target] = replace(golden, by="canonical graph")
    GoldenByTarget(engines=found).write(work)


def record_examples(work: Path, canonical: Path, model: Manifest, engines: Sequence[EngineSpec]) -> None:
    """Write work/verify.json with what each engine of a module gives for the examples in `work`."""
    interface, found = model.graphs[MODULE], {}
    with closing(OrtSession.open(canonical, interface, OrtOptions(optimize=True, prepack=False))) as reference:
        for spec in engines:
            with Module(model, OrtSession.open(work / spec.path, interface), work) as opened:
                found[spec.target] = golden_examples(opened, reference)
    GoldenByTarget(engines=found).write(work)


def record_answers(work: Path, canonical: Path, model: Manifest, engines: Sequence[EngineSpec]) -> None:
    """Write work/verify.json, and the sounds of a speech model; `work` holds the engines.

    The tokenizer is next to the graph at `canonical`.
    """
    limit = min(int(spec.actual.get("max_positions", model.model.max_positions)) for spec in engines)
    if ENCODER in model.graphs and any(item.role == "audio" for item in model.graphs[ENCODER].inputs):
        asked, slots = write_sounds(work, model), 1  # a row holds the states of a window: tens of megabytes
        num_tokens = min(NUM_TOKENS, limit - max(len(answer.prompt_ids) for answer in asked))
    else:
        num_tokens = min(NUM_TOKENS, limit - 1)
        asked = _texts(Bundle(canonical.parent, model), limit - num_tokens)
        slots = max(len(asked), 1)
    capacity = num_tokens + max((len(answer.prompt_ids) for answer in asked), default=1)
    sources = partial(source_of, directory=work, manifest=model)
    found: dict[str, Golden] = {}
    for spec in engines:
        if spec.target in ("ort-cpu", kernels.TARGET):
            opened = open_engine(Bundle(work, model), spec, Sizes(num_slots=slots, capacity=capacity))
            with closing(opened) as engine:
                found[spec.target] = _expected(engine, asked, num_tokens, sources)
    absent = [spec.target for spec in engines if spec.target not in found]
    if absent:
        with _canonical_engine(canonical, model, work, slots, capacity) as engine:
            answers = replace(_expected(engine, asked, num_tokens, sources), by="canonical graph")
        found |= dict.fromkeys(absent, answers)
    GoldenByTarget(engines={spec.target: found[spec.target] for spec in engines}).write(work)


def _texts(model_dir: Bundle, longest: int) -> list[GoldenAnswer]:
    """The prompts that the model has tokens for, cut to `longest` tokens."""
    tokenizer, model = model_dir.tokenizer(), model_dir.manifest
    start = tuple(model.settings["decoder_start"]) if ENCODER in model.graphs else ()
    prompts = {text: tuple(tokenizer.encode(text)[:longest]) for text in PROMPTS}
    return [
        GoldenAnswer(prompt=text, prompt_ids=ids, token_ids=(), margins=(), start_ids=start)
        for text, ids in prompts.items()
        if ids and max(ids) < model.model.vocab_size
    ]


@contextmanager
def _canonical_engine(canonical: Path, model: Manifest, work: Path, slots: int, capacity: int) -> Iterator[Engine]:
    """The canonical decoder in float32, with its encoder if it has one; `canonical` is where a sole graph would be."""
    cache, cross = model.cache.with_dtype("float32"), model.cross.with_dtype("float32")
    parent, size = canonical.parent, dict[str, Any](num_slots=slots, capacity=capacity)
    if not cross.states:
        with (
            reference_of(canonical, model, work) as path,
            closing(OrtEngine.open(path, cache, **size, options=reference_options(ir.load(path).graph))) as engine,
        ):
            yield engine
        return
    encoder = source_encoder_interface(cross, model.graphs[ENCODER].inputs)
    with (
        reference_of(parent / DECODER / canonical.name, model, work) as path,
        closing(
            OrtEncoderDecoder.open_both(
                (parent / ENCODER / canonical.name, encoder),
                (path, cache, cross),
                max_source=cross.num_positions or model.model.max_positions,
                options=reference_options(ir.load(path).graph),
                **size,
            )
        ) as engine,
    ):
        yield engine


def _expected(engine: Engine, asked: Sequence[GoldenAnswer], num_tokens: int, sources: SourceOf) -> Golden:
    """Greedy answers and their noise, as many together as there are slots."""
    slots, pairs = engine.cache.num_slots, list[tuple[GoldenAnswer, float]]()
    for start in range(0, len(asked), slots):
        pairs += _answered(engine, asked[start : start + slots], num_tokens, sources)
    answers = tuple(answer for answer, _ in pairs)
    noise = max((noise for _, noise in pairs), default=0.0)
    found = Golden(answers=answers, noise=round(noise, DIGITS), by="engine")
    heard = [source for answer in answers if answer.audio and (source := sources(answer)) is not None]
    return _with_encoded(engine, found, heard) if heard else found


def _with_encoded(engine: Engine, found: Golden, heard: Sequence[Source]) -> Golden:
    """With the encoder's outputs for each sound alone, and how far they move in one batch."""
    alone = [encoded(engine, [source])[0] for source in heard]
    pairs = zip(encoded(engine, heard), alone, strict=True)
    noise = max(distance(many[name], one[name]) for many, one in pairs for name in one)
    examples = [GoldenExample(values={name: recorded(numbers) for name, numbers in one.items()}) for one in alone]
    return replace(found, examples=tuple(examples), output_noise=float(f"{noise:.2g}"))


def _answered(
    engine: Engine, asked: Sequence[GoldenAnswer], num_tokens: int, sources: SourceOf
) -> list[tuple[GoldenAnswer, float]]:
    """Greedy answers, stepped together, each with its noise."""
    slots = {engine.cache.admit(): answer for answer in asked}
    logits = {slot: read(engine, slot, answer, sources(answer))[-1].copy() for slot, answer in slots.items()}
    tokens: dict[int, list[int]] = {slot: [] for slot in slots}
    margins: dict[int, list[float]] = {slot: [] for slot in slots}
    for step in range(num_tokens):
        for slot, row in logits.items():
            tokens[slot].append(int(np.argmax(row)))
            margins[slot].append(round(margin_of(row, tokens[slot][-1]), DIGITS))
        if step + 1 < num_tokens:
            logits = engine.step({slot: ids[-1] for slot, ids in tokens.items()})
    pairs = []
    for slot, answer in slots.items():
        found = replace(answer, token_ids=tuple(tokens[slot]), margins=tuple(margins[slot]))
        pairs.append((found, _noise(engine, slot, found, sources)))
    for slot in slots:
        engine.cache.release(slot)
    return pairs


def _noise(engine: Engine, slot: int, answer: GoldenAnswer, sources: SourceOf) -> float:
    """The largest change of a margin when prompt and answer are read at once: other sizes, another order of sums.

    The slot is rewound: it keeps the states of its source, and no encoder runs again.
    """
    engine.cache.rewind(slot, 0)
    logits = read(engine, slot, answer, sources(answer), answer.token_ids[:-1])
    pairs = zip(logits, answer.token_ids, answer.margins, strict=True)
    return max(abs(margin_of(row, token) - margin) for row, token, margin in pairs)
