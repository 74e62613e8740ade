"""calibrate: a float model directory and data become a quantized model directory."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from piston.calibration.answers import AnswerRows, HeldOutAnswers, load_answers
from piston.calibration.check import Check, CheckOptions, bounds_of, check
from piston.calibration.float_graph import ModelGraph, hash_of, open_graphs, publish
from piston.calibration.graph.names import by_module
from piston.calibration.observe.inputs import AnswerInputs, Inputs, SourceInputs, encoder_of
from piston.calibration.part import Part, QuantizedPart, recipes_of
from piston.calibration.quantizer import Quantizer
from piston.calibration.recipe import Recipe
from piston.calibration.refusals import check_options, check_tables
from piston.calibration.result import Calibrated
from piston.calibration.schemes.gptq_checkpoint import ROUNDED
from piston.calibration.schemes.mixed_precision import usual_int8
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.budget import MEASURED, SEARCHES, Budget
from piston.calibration.size import Size, actual_bytes, promised_bytes
from piston.calibration.task_check import TaskCheck, check_task, refit_task
from piston.core.arguments import checked_arguments
from piston.core.atomic_dir import atomic_dir, check_free, resumable_dir
from piston.core.bundle.external_data import plain_files
from piston.core.bundle.interface import DECODER, ENCODER, MODULE
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress, note
from piston.core.data_files import read_bytes
from piston.core.errors import MisuseError, ShortfallError
from piston.core.gates import Gate, Metric, MissedGateError
from piston.data.arrays import Arrays, HeldOutArrays, load_arrays
from piston.data.held_out import HeldOut, load_data
from piston.data.rows import BUILTIN, RowOptions, Rows
from piston.graph.trained_scales import TrainedScales
from piston.runtime.bundle import Bundle

SPARSE = "sparse"  # the float model directory with sparse weights
PREPARED = "prepared"  # the float model directory that is measured
STATES = "states"  # of the sources of an encoder-decoder

CalibrationData = Rows | Arrays | AnswerRows


@checked_arguments
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
        data: text, JSONL or token files, or "builtin"; of a module of one's own .npz files, of speech audio. Not needed
            to round weights to nearest without a budget.
        rows: how the data is packed; of a module only how many samples are taken, by default all.
        keep_worst: linears to leave in float, those whose INT8 moves the model furthest by multiply-add (w8a8); those
            that share a weight count as one.
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
            and a search measured is also kept where the result misses its bound.
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
    check_options(task, recipe, data, keep_worst, budget, bounds, labelled=checked.labelled)
    if checked.labelled is not None:
        read_bytes(checked.labelled)  # a file that is not there is told before the work
    with plain_files(model_dir, out) as plain:
        manifest, graphs = Manifest.read(plain), open_graphs(plain)
        recipe = _for_model(recipe, graphs, model_dir)
        check_tables(recipe, graphs)
        found: tuple[CalibrationData | None, HeldOut | HeldOutArrays | HeldOutAnswers]
        if task == MODULE:
            found = load_arrays(data, plain, manifest.graphs[MODULE], rows, checked.data)
        elif len(graphs) > 1:
            found = load_answers(data, plain, rows or RowOptions(), checked.data, progress)
        else:
            found = load_data(data, Bundle(plain, manifest), rows or RowOptions(), checked.data)
        with resumable_dir(out, "calibration", reads=reads) as scratch:
            for searches_left in reversed(range(SEARCHES)):
                try:
                    with (
                        _parts(
                            graphs or open_graphs(plain), recipe, found[0], plain, manifest, scratch / STATES
                        ) as parts,
                        atomic_dir(out, overwrite=overwrite, reads=reads) as work,
                    ):
                        graphs = []  # a calibration uses them up
                        return _Calibration(
                            directory=plain,
                            manifest=manifest,
                            parts=parts,
                            recipe=recipe,
                            rows=found[0],
                            held_out=found[1],
                            keep_worst=keep_worst,
                            budget=budget,
                            bounds=bounds,
                            trained=trained,
                            labelled=checked.labelled,
                            count_saturations=count_saturations,
                            progress=progress,
                        ).run(work, scratch)
                except ShortfallError as error:
                    gates = error.gates if isinstance(error, MissedGateError) else ()
                    tighter = budget.after(gates) if budget is not None else None
                    if tighter is None or not searches_left:
                        _keep_work(scratch)
                        raise
                    budget = tighter
                    missed = ", ".join(str(gate) for gate in gates if not gate.is_met)
                    note(f"The written model misses {missed}; searching again, further inside it.")
    raise AssertionError("every search returns or raises")


def _keep_work(scratch: Path) -> None:
    """Of all that is in a work directory leave what may have taken hours, of each graph: of GPTQ and of a search."""
    for item in scratch.iterdir():
        if item.name in {ENCODER, DECODER}:
            _keep_work(item)
        elif item.name not in {ROUNDED, MEASURED}:
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def _for_model(recipe: Recipe, graphs: Sequence[ModelGraph], model_dir: Path) -> Recipe:
    """The recipe with what it leaves to the model; raises MisuseError for one that was made for another."""
    if recipe.model not in ("", hash_of(graphs)):
        raise MisuseError(
            f"The recipe was made for another model: SHA-256 {recipe.model[:12]}, and {model_dir} has "
            f"{hash_of(graphs)[:12]}. Give that model, or calibrate this one anew."
        )
    names = [name for graph in graphs for name in graph.layer_names]
    recipe = dataclasses.replace(
        recipe,
        keep=by_module(recipe.keep, names),
        dense=by_module(recipe.dense, names),
        int8=None if recipe.int8 is None else by_module(recipe.int8, names),
    )
    if recipe.scheme == "w4" and recipe.int8 is None and not recipe.model:  # what is settled says so itself
        return dataclasses.replace(recipe, int8=usual_int8([linear for graph in graphs for linear in graph.linears]))
    return recipe


@contextmanager
def _parts(
    graphs: Sequence[ModelGraph],
    recipe: Recipe,
    rows: CalibrationData | None,
    model_dir: Path,
    manifest: Manifest,
    states: Path,
) -> Iterator[list[Part]]:
    """The graphs with their shares of the recipe and what they are run on, as long as the block lasts.

    `states` is a directory for what the encoder of an encoder-decoder computes, which is removed.
    """
    recipes = recipes_of(recipe, graphs)
    if not isinstance(rows, AnswerRows):
        ids = None if rows is None else rows.ids
        yield [Part(graph, own, ids) for graph, own in zip(graphs, recipes, strict=True)]
        return
    inputs: dict[str, Inputs]
    with encoder_of(model_dir, manifest) as encoder:
        inputs = {ENCODER: SourceInputs(rows.answers), DECODER: AnswerInputs(rows.answers, encoder, states)}
        try:
            yield [Part(graph, own, inputs[graph.folder]) for graph, own in zip(graphs, recipes, strict=True)]
        finally:
            shutil.rmtree(states, ignore_errors=True)


@dataclass(slots=True, kw_only=True)
class _Calibration:
    """One calibration under way."""

    directory: Path
    manifest: Manifest
    parts: list[Part]
    recipe: Recipe
    rows: CalibrationData | None
    held_out: HeldOut | HeldOutArrays | HeldOutAnswers
    keep_worst: int
    budget: Budget | None
    bounds: tuple[Gate[Metric], ...]
    trained: TrainedScales | None
    labelled: Path | None
    count_saturations: bool
    progress: Progress

    def run(self, work: Path, scratch: Path) -> Calibrated:
        """Quantize, write the model directory into `work`, and check it there."""
        graphs = [part.graph for part in self.parts]
        layers = [name for graph in graphs for name in graph.layer_names]
        with self.progress.phase(f"quantizing to {self.recipe.shown_scheme}"):
            promised = sum(
                promised_bytes(graph.model.graph, graph.linears, self.recipe, graph.convolutions) for graph in graphs
            )
            done = [self._quantized(part, scratch / part.graph.folder) for part in self.parts]
        names = [name for part in done for name in part.quantized]
        # What was measured becomes part of the recipe: with it the same data gives the same model again.
        settled = dataclasses.replace(
            self.recipe,
            kept_in_float=tuple(name for part in done for name in part.kept_in_float),
            kept=self.recipe.stores_kept if self.recipe.scheme == "w8a8" else None,
            kv_scales=done[-1].scales,
            model=hash_of(graphs),
            data=self.recipe.data if self.rows is None else self.rows.hashes,
        )
        errors = [item for part in done for item in part.prepared.errors.items()]
        sensitivity = dict(sorted(errors, key=lambda item: -item[1]))
        weight_only = [name for part in done for name in part.weight_only]
        record = {
            "recipe": settled.to_json(),
            "data": None if self.rows is None else self.rows.to_json(),
            "sensitivity": sensitivity,
            "cost_alone": done[-1].cost_alone,
            "weight_only": weight_only,
            "remainders": {name: ratio for part in done for name, ratio in part.remainders.items()},
            "sparse": [name for part in done for name in part.sparse],
            "budget": None if done[-1].spent is None else done[-1].spent.to_json(),
        }
        with self.progress.phase("writing"):
            manifest = publish(graphs, self.manifest, self.directory, work, self.recipe.shown_scheme, record)
        size = Size(promised, actual_bytes(manifest), actual_bytes(self.manifest))
        record["size"] = dataclasses.asdict(size)
        last = dataclasses.replace(done[-1], prepared=Prepared({}))
        del done
        for graph in graphs:
            graph.release()  # the check loads two models
        if self.labelled is not None:
            manifest = refit_task(work, self.directory, self.labelled)
        found = self._check(work)
        made_by = {**manifest.made_by, "calibration": {**record, "check": found.to_json()}}
        manifest = dataclasses.replace(manifest, made_by=made_by)
        manifest.write(work)
        return Calibrated(
            manifest=manifest,
            recipe=settled,
            quantized=names,
            kept=[name for name in layers if name not in names],
            weight_only=weight_only,
            size=size,
            sensitivity=sensitivity,
            cost_alone=last.cost_alone,
            check=found,
            spent=last.spent,
            saturated=last.saturated,
            data_warning=None if self.rows is None else self.recipe.data_warning(self.rows.hashes),
        )

    def _quantized(self, part: Part, scratch: Path) -> QuantizedPart:
        return Quantizer(
            part=part,
            rows=self.rows.ids if isinstance(self.rows, Rows) else None,
            held_out=self.held_out.ids if isinstance(self.held_out, HeldOut) else None,
            keep_worst=self.keep_worst,
            budget=self.budget,
            labelled=self.labelled,
            trained=self.trained,
            count_saturations=self.count_saturations,
            scratch=scratch,
            progress=self.progress,
        ).run()

    def _check(self, work: Path) -> Check | TaskCheck:
        has_int8_cache = self.recipe.kv == "int8"
        with self.progress.phase("checking the result"):
            if self.manifest.task != TEXT_GENERATION:
                return check_task(work, self.directory, self.held_out, self.bounds, self.labelled, self.progress)
            assert isinstance(self.held_out, HeldOut)
            return check(work, self.directory, self.held_out, self.bounds, far=has_int8_cache, progress=self.progress)
