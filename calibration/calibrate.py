"""calibrate: a float model directory and data become a quantized model directory."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from piston.calibration.check import ROW_LEN, Check, bounds_of, check
from piston.calibration.float_graph import ModelGraph
from piston.calibration.observe.saturation import Saturated, saturations
from piston.calibration.recipe import HEAD, Recipe
from piston.calibration.refusals import check_choice, check_data, check_labels, check_task_options
from piston.calibration.schemes.convolutions import prepare_convolutions
from piston.calibration.schemes.embeddings import QuantizeTablesPass
from piston.calibration.schemes.gptq_checkpoint import ROUNDED
from piston.calibration.schemes.kv_cache import RoundCachePass, Scales, cache_steps, observe_cache, written
from piston.calibration.schemes.mixed_precision import usual_int8
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.sparsity import sparsify
from piston.calibration.schemes.trained import round_trained
from piston.calibration.schemes.w8a8 import round_all
from piston.calibration.schemes.weight_only import round_weights
from piston.calibration.search.budget import Budget, BudgetResult, SearchContext, spend
from piston.calibration.search.meter import Meter
from piston.calibration.search.sensitivity import few, most_harmful
from piston.calibration.size import Size, actual_bytes, promised_bytes
from piston.calibration.task_check import TaskCheck, check_task
from piston.core.atomic_dir import atomic_dir, check_free, resumable_dir
from piston.core.bundle.external_data import plain_files
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress
from piston.core.errors import MisuseError, ShortfallError
from piston.core.gates import Gate, Metric
from piston.data.arrays import Arrays, HeldOutArrays, load_arrays
from piston.data.held_out import HeldOut, load_data
from piston.data.packing import Ids
from piston.data.rows import BUILTIN, RowOptions, Rows, chat_rows
from piston.graph.trained_scales import TrainedScales
from piston.runtime.bundle import Bundle

SPARSE = "sparse"  # the float model directory with sparse weights
PREPARED = "prepared"  # the float model directory that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What the result may cost (such as "ppl<=2%"; without one, the scheme's default), and the text that shows it.

    `labelled` is a file of examples for figures of encoder tasks, such as "accuracy>=-0.5%".
    """

    bounds: tuple[str, ...] = ()
    data: str | Path | None = None
    labelled: Path | None = None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out: which linears are quantized and which were kept, and what was measured."""

    manifest: Manifest
    recipe: Recipe  # settled: it gives the same model again from the same data, without measuring what to keep
    quantized: list[str]
    kept: list[str]  # their activations are in float
    weight_only: list[str]  # of these, those whose weights are in INT8 all the same
    size: Size
    sensitivity: dict[str, float]  # w8a8: each linear's error in INT8, worst first
    harm: dict[str, float]  # with keep_worst: KL of the linears that were measured alone, worst by multiply-add first
    check: Check | TaskCheck
    spent: BudgetResult | None  # on a budget
    saturated: dict[str, Saturated]  # by what reads the value, or its cache; empty unless asked for
    data_warning: str | None  # the recipe was made with other data

    @property
    def remainders(self) -> dict[str, int]:
        """w8a8: of each linear whose input has a remainder, how many times its scale the remainder's is."""
        return dict(self.manifest.made_by["calibration"]["remainders"])


def calibrate(  # noqa: PLR0913
    model_dir: str | Path,
    out: str | Path,
    recipe: Recipe,
    data: Sequence[str | Path] = (),
    *,
    rows: RowOptions | None = None,
    keep_worst: int = 0,
    budget: Budget | None = None,
    checked: CheckOptions | None = None,
    trained: TrainedScales | None = None,
    count_saturations: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Quantize `model_dir` by `recipe` into `out`, if the result passes its check.

    Args:
        model_dir: what `piston export` wrote, in float32.
        out: the directory to write.
        recipe: the scheme and how.
        data: text, JSONL or token files, or "builtin"; of a module of one's own .npz files. Not needed to round weights
            to nearest without a budget.
        rows: how the data is packed; of a module only how many samples are taken, by default all.
        keep_worst: linears to leave in float, those whose INT8 moves the model furthest by multiply-add (w8a8).
        budget: what the result may cost at most; finds what to leave in float.
        checked: the bound on the result, and on which text.
        trained: the scales that the recipe names.
        count_saturations: also count, on the rows of the check, what lies beyond each scale.
        overwrite: replace `out`.
        progress: shows the phases.

    Raises:
        MisuseError: the recipe needs data and there is none, a pattern names no linear, the recipe is of another model,
            or the model is not float32.
        CalibrationError: an activation is not finite.
        ShortfallError: the result costs more than its bound, or the budget cannot be met.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
            An interrupt keeps what was observed or rounded so far, and the same call goes on from it; what GPTQ rounded
            is also kept where the result misses its bound.
    """
    model_dir, out, progress = Path(model_dir), Path(out), progress or Progress(quiet=True)
    checked = checked or CheckOptions()
    reads = [
        model_dir,
        *(Path(item) for item in (*data, checked.data, checked.labelled) if item is not None and str(item) != BUILTIN),
    ]
    check_free(out, overwrite=overwrite, reads=reads)
    task = Manifest.read(model_dir).task
    if bool(recipe.trained) != (trained is not None):
        raise MisuseError("A recipe that names trained scales is given together with them, and no other.")
    bounds = (*bounds_of(checked.bounds, recipe.scheme, task), *([] if budget is None else [budget.bound]))
    check_choice(recipe, keep_worst, budget)
    check_task_options(task, recipe, keep_worst, budget)
    check_data(task, recipe, data, budget)
    check_labels(task, bounds, checked.labelled)
    with plain_files(model_dir, out) as plain:
        graph = ModelGraph.open(plain)
        recipe = _for_model(recipe, graph, model_dir)
        packed: Rows | Arrays | None
        held_out: HeldOut | HeldOutArrays
        if task == MODULE:
            packed, held_out = load_arrays(data, plain, graph.manifest.graphs[MODULE], rows, checked.data)
        else:
            packed, held_out = load_data(data, Bundle(plain, graph.manifest), rows or RowOptions(), checked.data)
        job = _Calibration(
            graph,
            recipe,
            packed,
            keep_worst,
            budget,
            held_out,
            bounds,
            trained,
            checked.labelled,
            count_saturations,
            progress,
        )
        with (
            resumable_dir(out, "calibration", reads=reads) as scratch,
            atomic_dir(out, overwrite=overwrite, reads=reads) as work,
        ):
            try:
                return job.run(work, scratch)
            except ShortfallError:
                _keep_rounded(scratch)
                raise


def _keep_rounded(scratch: Path) -> None:
    """Of all that lies in a work directory leave what GPTQ rounded, which may have taken hours."""
    for item in scratch.iterdir():
        if item.name != ROUNDED:
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def _for_model(recipe: Recipe, graph: ModelGraph, model_dir: Path) -> Recipe:
    """The recipe with what it leaves to the model; raises MisuseError for one that was made for another."""
    if recipe.model not in ("", graph.sha256):
        raise MisuseError(
            f"The recipe was made for another model: SHA-256 {recipe.model[:12]}, and {model_dir} has "
            f"{graph.sha256[:12]}. Give that model, or calibrate this one anew."
        )
    if recipe.scheme == "w4" and recipe.int8 is None and not recipe.model:  # what is settled says so itself
        return dataclasses.replace(recipe, int8=usual_int8(graph.linears))
    return recipe


@dataclass(slots=True)
class _Calibration:
    """One calibration under way."""

    graph: ModelGraph
    recipe: Recipe
    rows: Rows | Arrays | None
    keep_worst: int
    budget: Budget | None
    held_out: HeldOut | HeldOutArrays
    bounds: tuple[Gate[Metric], ...]
    trained: TrainedScales | None
    labelled: Path | None
    count_saturations: bool
    progress: Progress

    def run(self, work: Path, scratch: Path) -> Calibrated:
        """Quantize, write the model directory into `work`, and check it there."""
        with self.progress.phase(f"quantizing to {self.recipe.shown_scheme}"):
            graph = self.graph
            promised = promised_bytes(graph.model.graph, graph.linears, self.recipe, graph.convolutions)
            sparse = self._sparsify(scratch)
            prepared = self._prepare(scratch)
            samples = None if self.rows is None else self.rows.ids
            convolutions = prepare_convolutions(graph, self.recipe, samples, scratch, self.progress)
            measures_cache = self.recipe.kv == "int8" and not self.recipe.kv_scales
            if self.budget is not None or self.keep_worst or measures_cache or self.count_saturations:
                self.graph.save_float(scratch / PREPARED)  # smoothing moves the values: measure it as it will be
            scales = self._cache_scales(scratch)
            spent = self._spend(prepared, scales, scratch)
            harm = self._harm(prepared, scales, scratch)
            spared = self._spared(prepared, spent, harm)
            saturated = self._saturated(prepared, scales, scratch)
            read = {linear.name: linear.input_name for linear in self.graph.linears}
            names = prepared.insert(self.graph, set(prepared.weights) - set(spared))
            remainders = {name: prepared.ratios[read[name]] for name in names if read[name] in prepared.ratios}
            weight_only = [name for name in prepared.kept if name not in names]
            names += convolutions.insert(graph)
            names += self._round_tables()
            if scales:
                RoundCachePass(scales, self.graph.manifest.cache)(self.graph.model)
        layers = [linear.name for linear in graph.linears] + [each.name for each in graph.convolutions]
        kept = [name for name in layers if name not in names]
        # What was measured becomes part of the recipe: with it the same data gives the same model again.
        settled = dataclasses.replace(
            self.recipe,
            spared=spared,
            kept=self.recipe.stores_kept if self.recipe.scheme == "w8a8" else None,
            kv_scales=scales,
            model=self.graph.sha256,
            data=self.recipe.data if self.rows is None else self.rows.hashes,
        )
        errors = dict(prepared.errors)
        record = {
            "recipe": settled.to_json(),
            "data": None if self.rows is None else self.rows.to_json(),
            "sensitivity": errors,
            "harm": harm,
            "weight_only": weight_only,
            "remainders": remainders,
            "sparse": sparse,
            "budget": None if spent is None else spent.to_json(),
        }
        with self.progress.phase("writing"):
            manifest = self.graph.publish(work, self.recipe.shown_scheme, record)
        size = Size(promised, actual_bytes(manifest), actual_bytes(self.graph.manifest))
        record["size"] = dataclasses.asdict(size)
        del prepared
        self.graph.release()  # the check loads two models
        found = self._check(work)
        made_by = {**manifest.made_by, "calibration": {**record, "check": found.to_json()}}
        manifest = dataclasses.replace(manifest, made_by=made_by)
        manifest.write(work)
        warning = None if self.rows is None else self.recipe.data_warning(self.rows.hashes)
        return Calibrated(
            manifest, settled, names, kept, weight_only, size, errors, harm, found, spent, saturated, warning
        )

    @property
    def _token_rows(self) -> Ids:
        """The rows of a model that reads tokens."""
        assert isinstance(self.rows, Rows)
        return self.rows.ids

    def _sparsify(self, scratch: Path) -> list[str]:
        """Make weights sparse before anything is rounded; what reads the model from its directory reads them so."""
        if not self.recipe.sparsity:
            return []
        rows = None if self.rows is None else self._token_rows
        sparse = sparsify(self.graph, self.recipe, rows, scratch, self.progress)
        if self.recipe.scheme == "w8a8":
            self.graph.save_float(scratch / SPARSE)
            self.graph.observed = scratch / SPARSE
        return sparse

    def _prepare(self, scratch: Path) -> Prepared:
        graph, recipe, progress = self.graph, self.recipe, self.progress
        if recipe.scheme == "fp":
            return Prepared({})
        if recipe.trained:
            assert self.trained is not None
            return round_trained(graph, recipe, self.trained)
        if recipe.scheme == "w8a8":
            assert self.rows is not None
            return round_all(graph, recipe, self.rows.ids, scratch, progress)
        return round_weights(graph, recipe, None if self.rows is None else self.rows.ids, scratch, progress)

    def _harm(self, prepared: Prepared, scales: Scales, scratch: Path) -> dict[str, float]:
        if not self.keep_worst:
            return {}
        rows = few(self._token_rows)
        meter = Meter(self.graph, prepared, scales, scratch / PREPARED, [rows])
        try:
            return most_harmful(meter, prepared, self.graph.linears, rows, self.keep_worst, self.progress)
        finally:
            meter.close()

    def _spared(self, prepared: Prepared, spent: BudgetResult | None, harm: Mapping[str, float]) -> tuple[str, ...]:
        """What was rounded and stays in float all the same, in the order of the graph."""
        if unknown := sorted(set(self.recipe.spared) - set(prepared.weights)):
            raise MisuseError(f"The recipe spares {unknown[0]}, which the model has not, or keeps already.")
        worst = list(harm)[: self.keep_worst]
        found = worst if spent is None or spent.best is None else spent.best.kept
        names = {*self.recipe.spared, *found}
        weights = {linear.weight for linear in self.graph.linears if linear.name in names}
        spared = {linear.name for linear in self.graph.linears if linear.weight in weights}  # what shares one stays too
        return tuple(name for name in prepared.weights if name in spared)

    def _round_tables(self) -> list[str]:
        """The embedding and the lm_head, where the recipe has them in INT8; returns the latter's name."""
        is_quantized = self.recipe.head == "int8"
        head = next((linear for linear in self.graph.linears if linear.name == HEAD), None) if is_quantized else None
        if is_quantized and head is None:
            raise MisuseError("The graph has no lm_head that --head int8 could quantize.")
        with_embedding, block = self.recipe.embedding == "int8", self.recipe.table_block
        QuantizeTablesPass(embedding=with_embedding, head=head, block=block)(self.graph.model)
        return [HEAD] if is_quantized else []

    def _cache_scales(self, scratch: Path) -> dict[str, tuple[float, ...]]:
        if self.recipe.kv == "float":
            return {}
        if self.recipe.kv_scales:
            return dict(self.recipe.kv_scales)
        ids = self._token_rows
        chats = chat_rows(Bundle(self.graph.directory, self.graph.manifest), ids.shape[1])
        rows = [ids] if chats is None else [ids, chats]
        granularity = self.recipe.kv_granularity
        return observe_cache(scratch / PREPARED, self.graph.model, rows, granularity, scratch, self.progress)

    def _spend(self, prepared: Prepared, scales: Scales, scratch: Path) -> BudgetResult | None:
        if self.budget is None:
            return None
        assert isinstance(self.held_out, HeldOut)
        ground = SearchContext(
            graph=self.graph,
            prepared=prepared,
            kv_scales=scales,
            rows=self._token_rows,
            held_out=self.held_out.ids,
        )
        return spend(ground, self.budget, scratch, self.progress)

    def _saturated(self, prepared: Prepared, scales: Scales, scratch: Path) -> dict[str, Saturated]:
        if not self.count_saturations:
            return {}
        reach = {name: 1 + prepared.ratios.get(name, 0) for name in prepared.scales}
        wanted = {name: np.array(scale * reach[name], np.float32) for name, scale in prepared.scales.items()}
        for name, channels in prepared.outliers(self.graph.linears).items():
            size = next(linear.shape[0] for linear in self.graph.linears if linear.input_name == name)
            wanted[name] = np.full(size, wanted[name])
            wanted[name][channels] = np.inf  # they have no codes
        wanted |= cache_steps(self.graph.model, scales, self.graph.manifest.cache)
        if not wanted:
            return {}
        assert isinstance(self.held_out, HeldOut)
        rows = self.held_out.ids[:, :ROW_LEN]
        found = saturations(scratch / PREPARED, rows, wanted, scratch, self.progress)
        readers = {name: ", ".join(linear.name for linear in group) for name, group in self.graph.groups().items()}
        caches = {new.name or "": node.outputs[0].name or "" for node, new in written(self.graph.model.graph)}
        return {readers.get(name) or caches[name]: counted for name, counted in found.items()}

    def _check(self, work: Path) -> Check | TaskCheck:
        has_int8_cache = self.recipe.kv == "int8"
        manifest = self.graph.manifest
        with self.progress.phase("checking the result"):
            if manifest.task != TEXT_GENERATION:
                return check_task(work, self.graph.directory, self.held_out, self.bounds, self.labelled, self.progress)
            assert isinstance(self.held_out, HeldOut)
            return check(
                work, self.graph.directory, self.held_out, self.bounds, far=has_int8_cache, progress=self.progress
            )
