"""The answers that travel in a bundle: the canonical graph's, and how far the engines that run here are from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from piston.engines.prove import reference_of
from piston.runtime.bundle import Bundle
from piston.runtime.engine import Engine
from piston.runtime.expected import Expected, ExpectedAnswer
from piston.runtime.manifest import EngineSpec, Manifest
from piston.runtime.ort_engine import OrtEngine, OrtOptions
from piston.runtime.verify import margin_of

NUM_TOKENS = 12
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Q: Wie heißt die Hauptstadt von Italien?\nA:",
)
DIGITS = 4  # of a margin: what it is compared with is never that small


def record_answers(work: Path, canonical: Path, model: Manifest, engines: Sequence[EngineSpec]) -> None:
    """Write work/verify.json; `work` holds the engines, the tokenizer lies beside the graph at `canonical`."""
    tokenizer = Bundle(canonical.parent, model).tokenizer()
    limit = min(int(spec.got.get("max_positions", model.model.max_positions)) for spec in engines)
    num_tokens = min(NUM_TOKENS, limit - 1)
    prompts = {text: tokenizer.encode(text)[: limit - num_tokens] for text in PROMPTS}
    prompts = {text: ids for text, ids in prompts.items() if ids and max(ids) < model.model.vocab_size}
    capacity = num_tokens + max((len(ids) for ids in prompts.values()), default=1)
    options = OrtOptions(prepack=False)
    with reference_of(canonical, model, work, int8_head=False) as path:
        cache = replace(model.cache, dtype="float32")
        reference = OrtEngine.open(path, cache, num_slots=len(prompts), capacity=capacity, options=options)
        answers = _answered(reference, prompts, num_tokens)
        reference.close()
    noise = 0.0
    for spec in engines:
        if spec.target == "ort-cpu":
            engine = OrtEngine.open(work / spec.path, spec.cache, num_slots=len(prompts), capacity=capacity)
            noise = max(noise, _noise(engine, answers))
            engine.close()
    Expected(answers=tuple(answers), noise=noise).write(work)


def _answered(engine: Engine, prompts: dict[str, list[int]], num_tokens: int) -> list[ExpectedAnswer]:
    """Greedy answers of all prompts, stepped together."""
    slots = {engine.cache.admit(): item for item in prompts.items()}
    logits = {slot: engine.prefill(slot, ids)[-1].copy() for slot, (_, ids) in slots.items()}
    tokens: dict[int, list[int]] = {slot: [] for slot in slots}
    margins: dict[int, list[float]] = {slot: [] for slot in slots}
    for step in range(num_tokens):
        for slot, row in logits.items():
            tokens[slot].append(int(np.argmax(row)))
            margins[slot].append(round(margin_of(row, tokens[slot][-1]), DIGITS))
        if step + 1 < num_tokens:
            logits = engine.step({slot: ids[-1] for slot, ids in tokens.items()})
    return [
        ExpectedAnswer(prompt=text, prompt_ids=tuple(ids), token_ids=tuple(tokens[slot]), margins=tuple(margins[slot]))
        for slot, (text, ids) in slots.items()
    ]


def _noise(engine: Engine, answers: Sequence[ExpectedAnswer]) -> float:
    """The largest change of a margin from the canonical graph to an engine, fed the same tokens."""
    worst = 0.0
    slots = {engine.cache.admit(): answer for answer in answers}
    logits = {slot: engine.prefill(slot, list(answer.prompt_ids))[-1].copy() for slot, answer in slots.items()}
    for step in range(len(answers[0].token_ids)):
        for slot, answer in slots.items():
            off = abs(margin_of(logits[slot], answer.token_ids[step]) - answer.margins[step])
            worst = max(worst, off)
        if step + 1 < len(answers[0].token_ids):
            logits = engine.step({slot: answer.token_ids[step] for slot, answer in slots.items()})
    for slot in slots:
        engine.cache.release(slot)
    return round(worst, DIGITS)
