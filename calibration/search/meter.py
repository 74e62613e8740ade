"""Measures a prepared model with some of its linears in integers against the float model, on rows of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from piston.calibration.check import corpus_of, whole_rows
from piston.calibration.float_graph import ModelGraph
from piston.calibration.schemes.kv_cache import Scales
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.cached_logits import CachedLogitsEngine
from piston.calibration.search.switched import NAME, Switches, write_switched
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER
from piston.data.packing import Ids
from piston.evaluation.scoring import score
from piston.evaluation.summary import agreement_of, perplexity_of
from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.session import OrtOptions

SEED = 0


class AnyMeter(Protocol):
    """What measures a prepared model: Meter, EncoderMeter."""

    def figures(self, quantized: Iterable[str], rows: Ids) -> dict[str, float]:
        """How far the model moved with these linears in integers, on one of the texts."""

    def quality(self) -> dict[str, float]:
        """Figures on labelled examples of what `figures` measured last; none where there are no examples."""

    def close(self) -> None:
        """Give the memory back."""


def open_meter(
    graph: ModelGraph,
    prepared: Prepared,
    kv_scales: Scales,
    directory: Path,
    texts: Sequence[Ids],
    labelled: Path | None = None,
) -> AnyMeter:
    """The meter of a language model or of an encoder; arguments as theirs."""
    if DECODER in graph.manifest.graphs:
        return Meter(graph, prepared, kv_scales, directory, texts)
    from piston.calibration.search.encoder_meter import EncoderMeter

    return EncoderMeter(graph, prepared, directory, texts, labelled)


def cost_of(figures: Mapping[str, float]) -> float:
    """How far a model moved, as one number that is 0 for the float model and adds up over small changes.

    KL divergence in nats where there are probabilities, else 1 - cosine of vectors, or the squared distance of logits.
    """
    if "kl" in figures:
        return figures["kl"]
    return 1 - figures["cosine"] if "cosine" in figures else figures["distance"] ** 2


class Meter:
    """The prepared model, open. The float model has read each text once and is gone before the other is opened.

    Args:
        graph: of the float model.
        prepared: what each linear would become.
        kv_scales: of an INT8 cache; if there are any, every measured model has it.
        directory: the prepared float model directory; a graph and logits are written into it.
        texts: all rows [rows, tokens] that will be measured on.
    """

    def __init__(
        self, graph: ModelGraph, prepared: Prepared, kv_scales: Scales, directory: Path, texts: Sequence[Ids]
    ) -> None:
        cache, capacity = graph.manifest.cache, max(rows.shape[1] for rows in texts)
        options = OrtOptions(optimize=True, prepack=False)  # weights are read from where they lie: half the memory
        plain = OrtEngine.open(graph.directory / GRAPH, cache, num_slots=1, capacity=capacity, options=options)
        self._reference = CachedLogitsEngine(plain, directory / "logits")
        for rows in texts:
            score(self._reference, None, corpus_of(rows, "rows"), whole_rows(rows))
        self._reference.let_go()
        write_switched(directory, prepared, kv_scales, cache)
        self._candidate = OrtEngine.open(directory / NAME, cache, num_slots=1, capacity=capacity, options=options)
        self._switches = Switches(prepared, graph.linears)
        self._candidate.around_run = self._switches.around_run

    def figures(self, quantized: Iterable[str], rows: Ids) -> dict[str, float]:
        """Perplexity, its change, KL and top-1 agreement on one of the texts with these linears in integers."""
        self._switches.quantize(quantized)
        scores = score(self._candidate, self._reference, corpus_of(rows, "rows"), whole_rows(rows))
        found = agreement_of(scores, SEED)
        nats = float(np.concatenate(scores.nll).mean())
        return {
            "ppl": perplexity_of(nats),
            "ppl_change": found.perplexity_ratio.value - 1,
            "kl": found.kl.mean.value,
            "top1": found.top1.value,
        }

    def quality(self) -> dict[str, float]:
        """See AnyMeter: language models have no labelled examples."""
        return {}

    def close(self) -> None:
        """Give the memory back."""
        self._candidate.close()
        self._reference.close()
