"""The parity gate of an encoder-decoder: its cross states, and the logits of every decoder step, against transformers.

As in parity.py the reference is taken before the model is traced, and compared after it is freed.
"""

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from piston.core.bundle.interface import CacheSpec, GraphInterface
from piston.core.errors import CheckpointError, ParityError
from piston.export.parity import Parity, Row, compare_answers
from piston.runtime.backends.cross_states import CrossStates
from piston.runtime.backends.engine import Source
from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder
from piston.runtime.backends.session import OrtOptions

NUM_STEPS = 8
ABSOLUTE, RELATIVE = 1e-3, 1e-4  # of cross states, float32: the larger of the two, RELATIVE times the largest
LONGER = 2  # decoder tokens of every second prompt behind the first: a prefill of several tokens

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceReference:
    """One source, the states that transformers caches of it, [heads, positions, head_dim] each, and its answer."""

    source: Source
    states: list[Array]
    row: Row


@dataclass(frozen=True, slots=True)
class SourceParity(Parity):
    """How far both graphs are from transformers: recorded in the manifest."""

    states_max_abs: float  # of the cross states
    states_bound: float


@torch.no_grad()
def take_source_reference(
    model: nn.Module, argument: str, sources: list[Source], start: list[int], vocab_size: int, positions: int
) -> list[SourceReference]:
    """Greedy answers to sources, each alone; logits come from one forward pass without a cache.

    Args:
        model: as transformers loaded it.
        argument: of its forward that takes the source's first feed.
        sources: of different lengths.
        start: tokens that begin every answer.
        vocab_size: of the decoder.
        positions: of the decoder.

    Raises:
        CheckpointError: logits are not finite.
    """
    rng, found = np.random.default_rng(0), []
    for index, source in enumerate(sources):
        feed = torch.from_numpy(next(iter(source.feeds.values())))
        more = rng.integers(min(3, vocab_size - 1), vocab_size, LONGER * (index % 2)).tolist()
        prompt = [*start, *more][: max(positions - NUM_STEPS, 1)]
        steps, greedy = min(NUM_STEPS, positions - len(prompt)), list[int]()
        output = model(**{argument: feed}, decoder_input_ids=torch.tensor([prompt]), use_cache=True)
        cache = output.past_key_values.cross_attention_cache.layers
        states = [part[0].numpy().copy() for layer in cache for part in (layer.keys, layer.values)]
        for _ in range(steps + 1):
            greedy.append(int(output.logits[0, -1].argmax()))
            ids = torch.tensor([[*prompt, *greedy]])
            encoded = (output.encoder_last_hidden_state,)
            output = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False)
        logits = output.logits[0, len(prompt) - 1 : -1].numpy()
        if not np.isfinite(logits).all():
            raise CheckpointError(
                "transformers itself answers NaN or infinity: a weight or a number in config.json is damaged."
            )
        found.append(SourceReference(source, states, Row(prompt, greedy, logits)))
    return found


def check_source_parity(
    encoder: tuple[Path, GraphInterface], decoder: tuple[Path, CacheSpec, CacheSpec], references: list[SourceReference]
) -> SourceParity:
    """Compare the cross states of all sources in one padded batch and of each alone, then the answers step by step.

    Raises:
        ParityError: a state or logits beyond the bound, or another greedy token.
    """
    rows = [reference.row for reference in references]
    with closing(
        OrtEncoderDecoder.open_both(
            encoder,
            decoder,
            num_slots=len(rows),
            capacity=max(len(row.prompt) + len(row.greedy) for row in rows),
            max_source=max(reference.source.length for reference in references),
            options=OrtOptions(optimize=True, prepack=False),
        )
    ) as engine:
        slots = {engine.cache.admit(): reference for reference in references}
        for slot, reference in slots.items():
            engine.encode(slot, reference.source)
        worst, bound = _compare_states(engine, slots)
        parity = compare_answers(
            engine, {slot: reference.row for slot, reference in slots.items()}, lambda: "The cross states agree."
        )
    return SourceParity(**dataclasses.asdict(parity), states_max_abs=worst, states_bound=bound)


def _compare_states(engine: OrtEncoderDecoder, slots: dict[int, SourceReference]) -> tuple[float, float]:
    """The largest difference of cross states in the slots, and in a batch that is padded; and the bound."""
    cross = engine.cache.cross
    assert isinstance(cross, CrossStates)
    together = engine.encoder.run(_batch([reference.source for reference in slots.values()]))
    largest = max(float(np.abs(state).max()) for reference in slots.values() for state in reference.states)
    bound, worst = max(ABSOLUTE, RELATIVE * largest), 0.0
    for index, state in enumerate(cross.spec.states):
        for row, (slot, reference) in enumerate(slots.items()):
            expected, length = reference.states[index], reference.source.length
            for found, how in ((cross.arrays[index][slot], "alone"), (together[state.output][row], "in a batch")):
                worst = max(worst, float(np.abs(found[:, :length] - expected).max()))
                if not worst <= bound:
                    raise ParityError(
                        f"The exported encoder differs from transformers at {state.output} of a source of {length} "
                        f"positions {how}: by {worst:.3g}, allowed are {bound:.3g}."
                    )
    return worst, bound


def _batch(sources: list[Source]) -> dict[str, Any]:
    """The feeds of all sources in one batch, padded with 7 on the right of the last axis."""
    names = sources[0].feeds
    longest = {name: max(source.feeds[name].shape[-1] for source in sources) for name in names}
    batch = {}
    for name in names:
        arrays = [source.feeds[name] for source in sources]
        if arrays[0].ndim > 1 and len({array.shape for array in arrays}) > 1:
            arrays = [
                np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, longest[name] - array.shape[-1])], constant_values=7)
                for array in arrays
            ]
        batch[name] = np.concatenate(arrays)
    return batch
