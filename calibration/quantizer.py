"""The quantization of one graph: make sparse, round, find what stays in float, write Q/DQ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from piston.calibration.check import ROW_LEN
from piston.calibration.observe.saturation import Saturated, saturations
from piston.calibration.part import Part, QuantizedPart
from piston.calibration.schemes.convolutions import prepare_convolutions
from piston.calibration.schemes.embeddings import QuantizeTablesPass
from piston.calibration.schemes.kv_cache import RoundCachePass, Scales, cache_steps, observe_cache, written
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.sparsity import sparsify
from piston.calibration.schemes.trained import round_trained
from piston.calibration.schemes.w8a8 import round_all
from piston.calibration.schemes.weight_only import round_weights
from piston.calibration.search.budget import Budget, BudgetResult, SearchContext, spend
from piston.calibration.search.meter import open_meter
from piston.calibration.search.sensitivity import few, most_sensitive
from piston.core.bundle.interface import DECODER
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.data.packing import Ids
from piston.data.rows import chat_rows
from piston.evaluation.encoders import needs_labels
from piston.graph.trained_scales import TrainedScales
from piston.runtime.bundle import Bundle

SPARSE = "sparse"  # the float model directory with sparse weights
PREPARED = "prepared"  # the float model directory that is measured


@dataclass(slots=True, kw_only=True)
class Quantizer:
    """One graph under way.

    Rows and held-out rows [rows, tokens] are those of a language model or an encoder: `keep_worst`, the budget, a cache
    and saturations are measured on them. `labelled` are examples that the budget may be about.
    """

    part: Part
    rows: Ids | None
    held_out: Ids | None
    keep_worst: int
    budget: Budget | None
    labelled: Path | None
    trained: TrainedScales | None
    count_saturations: bool
    scratch: Path
    progress: Progress

    def run(self) -> QuantizedPart:
        """Quantize one graph, in place."""
        graph, recipe, scratch = self.part.graph, self.part.recipe, self.scratch
        scratch.mkdir(exist_ok=True)
        sparse = self._sparsify()
        prepared = self._prepare()
        convolutions = prepare_convolutions(graph, recipe, self.part.rows, scratch, self.progress)
        measures_cache = recipe.kv == "int8" and not recipe.kv_scales
        if self.budget is not None or self.keep_worst or measures_cache or self.count_saturations:
            graph.save_float(self.scratch / PREPARED)  # smoothing moves the values: measure it as it will be
        scales = self._cache_scales()
        spent = self._spend(prepared, scales)
        cost_alone = self._cost_alone(prepared, scales)
        kept_in_float = self._kept_in_float(prepared, spent, cost_alone)
        saturated = self._saturated(prepared, scales)
        read = {linear.name: linear.input_name for linear in graph.linears}
        names = prepared.insert(graph, set(prepared.weights) - set(kept_in_float))
        result = QuantizedPart(
            prepared=prepared,
            scales=scales,
            spent=spent,
            cost_alone=cost_alone,
            kept_in_float=kept_in_float,
            saturated=saturated,
            sparse=sparse,
            weight_only=[name for name in prepared.kept if name not in names],
            remainders={name: prepared.ratios[read[name]] for name in names if read[name] in prepared.ratios},
            quantized=[*names, *convolutions.insert(graph), *_round_tables(self.part)],
        )
        if scales:
            RoundCachePass(scales, graph.manifest.cache)(graph.model)
        return result

    def _sparsify(self) -> list[str]:
        """Make weights sparse before anything is rounded; what reads the model from its directory reads them so."""
        if not self.part.recipe.sparsity:
            return []
        sparse = sparsify(self.part.graph, self.part.recipe, self.part.rows, self.scratch, self.progress)
        if self.part.recipe.scheme == "w8a8":
            self.part.graph.save_float(self.scratch / SPARSE)
            self.part.graph.observed = self.scratch / SPARSE
        return sparse

    def _prepare(self) -> Prepared:
        graph, recipe, progress = self.part.graph, self.part.recipe, self.progress
        if recipe.scheme == "fp":
            return Prepared({})
        if recipe.trained:
            assert self.trained is not None
            return round_trained(graph, recipe, self.trained)
        if recipe.scheme == "w8a8":
            assert self.part.rows is not None
            return round_all(graph, recipe, self.part.rows, self.scratch, progress)
        return round_weights(graph, recipe, self.part.rows, self.scratch, progress)

    def _cost_alone(self, prepared: Prepared, scales: Scales) -> dict[str, float]:
        if not self.keep_worst:
            return {}
        assert self.rows is not None
        rows = few(self.rows, of_encoder=DECODER not in self.part.graph.manifest.graphs)
        meter = open_meter(self.part.graph, prepared, scales, self.scratch / PREPARED, [rows])
        try:
            return most_sensitive(meter, prepared, self.part.graph.linears, rows, self.keep_worst, self.progress)
        finally:
            meter.close()

    def _kept_in_float(
        self, prepared: Prepared, spent: BudgetResult | None, cost_alone: Mapping[str, float]
    ) -> tuple[str, ...]:
        """What was rounded and stays in float all the same, in the order of the graph."""
        if unknown := sorted(set(self.part.recipe.kept_in_float) - set(prepared.weights)):
            raise MisuseError(f"The recipe spares {unknown[0]}, which the model has not, or keeps already.")
        worst = list(cost_alone)[: self.keep_worst]
        found = worst if spent is None or spent.best is None else spent.best.kept
        names, linears = {*self.part.recipe.kept_in_float, *found}, self.part.graph.linears
        weights = {linear.weight for linear in linears if linear.name in names}
        kept_in_float = {linear.name for linear in linears if linear.weight in weights}  # what shares one stays too
        return tuple(name for name in prepared.weights if name in kept_in_float)

    def _cache_scales(self) -> dict[str, tuple[float, ...]]:
        graph, recipe = self.part.graph, self.part.recipe
        if recipe.kv == "float":
            return {}
        if recipe.kv_scales:
            return dict(recipe.kv_scales)
        assert self.rows is not None
        chats = chat_rows(Bundle(graph.directory, graph.manifest), self.rows.shape[1])
        rows = [self.rows] if chats is None else [self.rows, chats]
        return observe_cache(
            self.scratch / PREPARED, graph.model, rows, recipe.kv_granularity, self.scratch, self.progress
        )

    def _spend(self, prepared: Prepared, scales: Scales) -> BudgetResult | None:
        if self.budget is None:
            return None
        assert self.rows is not None
        assert self.held_out is not None
        ground = SearchContext(
            graph=self.part.graph,
            prepared=prepared,
            kv_scales=scales,
            rows=self.rows,
            held_out=self.held_out,
            labelled=self.labelled if needs_labels(self.budget.bound.metric) else None,
        )
        return spend(ground, self.budget, self.scratch, self.progress)

    def _saturated(self, prepared: Prepared, scales: Scales) -> dict[str, Saturated]:
        if not self.count_saturations:
            return {}
        assert self.held_out is not None
        graph = self.part.graph
        reach = {name: 1 + prepared.ratios.get(name, 0) for name in prepared.scales}
        wanted = {name: np.array(scale * reach[name], np.float32) for name, scale in prepared.scales.items()}
        for name, channels in prepared.outliers(graph.linears).items():
            size = next(linear.shape[0] for linear in graph.linears if linear.input_name == name)
            wanted[name] = np.full(size, wanted[name])
            wanted[name][channels] = np.inf  # they have no codes
        wanted |= cache_steps(graph.model, scales, graph.manifest.cache)
        if not wanted:
            return {}
        rows = self.held_out[:, :ROW_LEN]
        found = saturations(self.scratch / PREPARED, rows, wanted, self.scratch, self.progress)
        readers = {name: ", ".join(linear.name for linear in group) for name, group in graph.groups().items()}
        caches = {new.name or "": node.outputs[0].name or "" for node, new in written(graph.model.graph)}
        return {readers.get(name) or caches[name]: counted for name, counted in found.items()}


def _round_tables(part: Part) -> list[str]:
    """The embedding and the lm_head, where the recipe has them in INT8; returns the latter's name."""
    recipe = part.recipe
    heads = [linear for linear in part.graph.linears if linear.is_head] if recipe.head == "int8" else []
    head = next(iter(heads), None)
    with_embedding, block = recipe.embedding == "int8", recipe.table_block
    QuantizeTablesPass(embedding=with_embedding, head=head, block=block)(part.graph.model)
    return [head.name for head in heads]
