"""The attention of an engine: its own graph once more, with its attention weights as further outputs."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import ENCODER
from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import MisuseError, ParityError
from piston.explanation.result import Array, AttentionMap
from piston.graph.attention_tap import TappedAttention, tap_attention
from piston.runtime.backends.cross_states import CrossStates
from piston.runtime.backends.engine import Source
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder
from piston.runtime.backends.ort_run import Run
from piston.runtime.backends.registry import candidates
from piston.runtime.backends.session import OrtOptions, OrtSession, open_session
from piston.runtime.bundle import Bundle

TARGET = "ort-cpu"  # whose graphs keep attention weights
SAME = 1e-4  # of the largest number of an output: float32 kernels that keep the weights may add in another order


@dataclass(frozen=True, slots=True)
class Tapped:
    """Attention maps, and how far the outputs of the tapped graph were from those of the engine's."""

    maps: tuple[AttentionMap, ...]
    difference: float


def engine_of(bundle: Bundle, target: str | None, *, with_attention: bool) -> EngineSpec:
    """The engine to explain: with attention the one whose graph can give its weights.

    Raises:
        MisuseError: the target, or every engine of the bundle, keeps no attention weights.
        BundleError: the bundle has no such engine, or none that runs here.
    """
    specs = candidates(bundle, target)
    if not with_attention:
        return specs[0]
    found = next((spec for spec in specs if spec.target == TARGET), None)
    if found is None:
        raise MisuseError(
            f"{specs[0].target} gives no attention weights; build the bundle with --target {TARGET} too, or leave "
            "them out with --no-attention."
        )
    return found


def encoder_attention(
    bundle: Bundle, spec: EngineSpec, feeds: Mapping[str, Any], tokens: Sequence[str], threads: int
) -> Tapped:
    """Of one row without padding.

    Raises:
        MisuseError: the graph keeps no attention weights.
        ParityError: with the weights as outputs the graph gives other answers.
        EngineError: ONNX Runtime fails.
    """
    path, options = bundle.directory / spec.files[ENCODER], OrtOptions(threads=threads)
    session, taps = _tapped(path, options)
    with closing(OrtSession(open_session(path, options))) as plain, closing(OrtSession(session)) as tapped:
        expected, found = plain.run(feeds), tapped.run(feeds)
    difference = max(_difference(name, expected[name], found[name]) for name in expected)
    count = len(tokens)
    maps = [
        AttentionMap("encoder", tap.layer, tuple(tokens), tuple(tokens), found[tap.output][0, :, :count, :count])
        for tap in taps
    ]
    return Tapped(tuple(maps), difference)


def decoder_attention(
    bundle: Bundle, spec: EngineSpec, ids: Sequence[int], tokens: Sequence[str], threads: int
) -> Tapped:
    """Of a language model that reads these tokens; raises as `encoder_attention`."""
    path, options = bundle.directory / spec.path, OrtOptions(threads=threads)
    session, taps = _tapped(path, options)
    logits, weights = [], dict[str, Array]()
    for opened in (open_session(path, options), session):
        engine = OrtEngine(opened, KVCache(spec.cache, 1, len(ids)), len(ids))
        with closing(engine):
            if opened is session:
                engine.around_run = _fetching(taps, weights)
            logits.append(engine.prefill(engine.cache.admit(), ids, len(ids)).copy())
    difference = _difference("logits", *logits)
    return Tapped(_maps("decoder", taps, weights, tokens, {False: tokens}), difference)


def encoder_decoder_attention(
    bundle: Bundle,
    spec: EngineSpec,
    source: tuple[Sequence[int], Sequence[str]],
    answer: tuple[Sequence[int], Sequence[str]],
    threads: int,
) -> Tapped:
    """Of an encoder-decoder: token ids and tokens of what it reads and of what it writes; raises as above."""
    (source_ids, source_tokens), (ids, tokens) = source, answer
    options, given = OrtOptions(threads=threads), Source.of_text(source_ids)
    read = encoder_attention(bundle, spec, given.feeds, source_tokens, threads)
    path = bundle.directory / spec.path
    session, taps = _tapped(path, options)
    logits, weights = [], dict[str, Array]()
    for opened in (open_session(path, options), session):
        cache = KVCache(spec.cache, 1, len(ids))
        cache.cross = CrossStates(spec.cross, 1, spec.cross.num_positions or given.length)
        engine = OrtEncoderDecoder(opened, cache, len(ids))
        engine.encoder = OrtSession(open_session(bundle.directory / spec.files[ENCODER], options))
        engine.max_source = given.length
        with closing(engine):
            slot = cache.admit()
            engine.encode(slot, given)
            if opened is session:
                engine.around_run = _fetching(taps, weights)
            logits.append(engine.prefill(slot, ids, len(ids)).copy())
    difference = max(read.difference, _difference("logits", *logits))
    written = _maps("decoder", taps, weights, tokens, {False: tokens, True: source_tokens})
    return Tapped((*read.maps, *written), difference)


def _tapped(path: Path, options: OrtOptions) -> tuple[Any, list[TappedAttention]]:
    """A session of the graph with its attention weights as outputs; nothing is written."""
    model = ir.load(path)
    taps = tap_attention(model)
    return open_session(path, options, ir.to_proto(model).SerializeToString()), taps


def _fetching(taps: Sequence[TappedAttention], weights: dict[str, Array]) -> Any:
    def around(run: Run) -> None:
        weights.update(run.fetch([tap.output for tap in taps]))

    return around


def _maps(
    kind: str,
    taps: Sequence[TappedAttention],
    weights: Mapping[str, Array],
    queries: Sequence[str],
    keys: Mapping[bool, Sequence[str]],
) -> tuple[AttentionMap, ...]:
    """By layer; `keys` of attention to the row itself, and to the source."""
    return tuple(
        AttentionMap(
            "cross" if tap.is_cross else kind,
            tap.layer,
            tuple(queries),
            tuple(keys[tap.is_cross]),
            weights[tap.output][0, :, : len(queries), : len(keys[tap.is_cross])],
        )
        for tap in taps
    )


def _difference(name: str, expected: Array, found: Array) -> float:
    """The largest distance of two outputs; raises ParityError where it is no rounding."""
    largest = float(np.abs(expected).max(initial=0))
    difference = float(np.abs(expected - found).max(initial=0))
    if not difference <= SAME * largest:
        raise ParityError(
            f"With its attention weights as outputs the graph gives other {name}: by {difference:.3g} of "
            f"{largest:.3g}. Leave them out with --no-attention."
        )
    return difference
