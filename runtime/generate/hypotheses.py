"""Completions by beam search."""

import time
from collections.abc import Sequence

from piston.core.errors import MisuseError
from piston.runtime.backends.engine import Engine
from piston.runtime.generate.beam_search import Hypothesis
from piston.runtime.generate.completion import Completion, Timings
from piston.runtime.generate.decode import beam_search
from piston.runtime.generate.generation import Generation
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.text.stream_decoder import StreamDecoder


def search(engine: Engine, generations: Sequence[Generation], params: BeamParams) -> list[Completion]:
    """The best answers to each generation's request: all of the first, then of the second; raises as beam_search."""
    if any(generation.sampling.n != 1 for generation in generations):
        raise MisuseError("n is for samples; num_return_sequences is the number of answers of a beam search.")
    found = beam_search(engine, [generation.request for generation in generations], params)
    return [
        completion_of(generation, hypothesis)
        for generation, hypotheses in zip(generations, found, strict=True)
        for hypothesis in hypotheses
    ]


def completion_of(generation: Generation, hypothesis: Hypothesis) -> Completion:
    """The answer that a search found, as text."""
    request, token_ids = generation.request, hypothesis.token_ids
    is_ended = token_ids[-1] in request.sampler.end_ids
    decoder = StreamDecoder(generation.tokenizer, after=request.prompt_ids)
    shown = token_ids[:-1] if is_ended and not generation.sampling.include_stop_str_in_output else token_ids
    total = time.perf_counter() - generation.started
    return Completion(
        text="".join([decoder.push(token_id) for token_id in shown]) + decoder.flush(),
        token_ids=token_ids,
        finish_reason="stop" if is_ended else "length",
        stop_reason=token_ids[-1] if is_ended else None,
        num_prompt_tokens=len(request.prompt_ids),
        num_prefilled_tokens=len(request.prompt_ids),
        num_source_tokens=0 if request.source is None else request.source.length,
        seed=request.sampler.seed,
        timings=Timings(time_to_first_token=total, total=total, num_tokens=len(token_ids)),
        score=hypothesis.score,
    )
