"""Drafts of the rows that a scheduler runs: made, verified in one call, and picked from."""

import time

from piston.runtime.backends.engine import Engine, Logits
from piston.runtime.generate.request import Request, Token


def drafts_wanted(request: Request) -> bool:
    """Whether tokens of a row may be drafted on this engine."""
    return request.speculator is not None and request.speculator.verification.most_tokens != 0


def draft_of(engine: Engine, slot: int, request: Request, num_others: int) -> list[int]:
    """Guesses of the next tokens of a row, next to which `num_others` rows run; often none."""
    speculator, num_left = request.speculator, request.sampler.sampling.max_tokens - len(request.output_ids)
    if speculator is None or speculator.verification.most_tokens == 0:
        return []
    forced = request.sampler.forced_ids()
    if not forced and not speculator.looks_up:
        return []
    if speculator.verification.most_tokens is None and num_left > 1:
        speculator.verification.probe(engine, slot, request.prompt_ids + request.output_ids)
    return speculator.draft(num_left, num_others, forced)


def verified(engine: Engine, slot: int, request: Request, draft: list[int]) -> list[Token]:
    """Run the last token and its draft in one call; pick while the draft is right, and one token more."""
    assert request.speculator is not None
    start, began = int(engine.cache.lengths[slot]), time.perf_counter()
    rows = engine.prefill(slot, [request.output_ids[-1], *draft], num_logits=len(draft) + 1)
    request.speculator.verification.cost.observe(len(draft) + 1, time.perf_counter() - began)
    picked: list[Token] = []
    for logits, guess in zip(rows, [*draft, None], strict=True):
        picked.append(pick(request, logits))
        if picked[-1].finish_reason is not None or picked[-1].pick.token_id != guess:
            break
    engine.cache.rewind(slot, start + len(picked))
    return picked


def pick(request: Request, logits: Logits) -> Token:
    """The next token of a row, from the model's logits float32 [vocab]."""
    began = time.perf_counter()
    picked = request.sampler.pick(logits)
    if request.speculator is not None:
        request.speculator.observe(picked.token_id)
    request.times.sampling += time.perf_counter() - began
    return Token(request, picked, request.sampler.finish_reason)
