"""calibrate: a float model directory and data become a quantized model directory."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from piston.calibration.data import RowOptions, Rows, load_rows
from piston.calibration.graph import ModelGraph
from piston.calibration.integer import round_all
from piston.calibration.prepared import Prepared
from piston.calibration.recipe import Recipe
from piston.calibration.weight_only import round_weights
from piston.runtime.bundle import Bundle
from piston.runtime.console import Progress
from piston.runtime.errors import MisuseError
from piston.runtime.manifest import Manifest
from piston.runtime.staging import check_free, staged_dir


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out: the manifest, the quantized linears, those kept in float, and each one's measured error."""

    manifest: Manifest
    quantized: list[str]
    kept: list[str]
    sensitivity: dict[str, float]  # w8a8: median relative squared output error in INT8, worst first


def calibrate(  # noqa: PLR0913
    model_dir: str | Path,
    out: str | Path,
    recipe: Recipe,
    data: Sequence[str | Path] = (),
    *,
    rows: RowOptions | None = None,
    keep_worst: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Quantize `model_dir` by `recipe` into `out`.

    Args:
        model_dir: what `piston export` wrote, in float32.
        out: the directory to write.
        recipe: the scheme and how.
        data: text, JSONL or token files, or "builtin"; not needed to round weights to nearest.
        rows: how the data is packed.
        keep_worst: linears to leave in float, those that INT8 moves furthest (w8a8).
        overwrite: replace `out`.
        progress: shows the phases.

    Raises:
        MisuseError: the recipe needs data and there is none, a pattern names no linear, or the model is not float32.
        CalibrationError: an activation is not finite.
        OutputExistsError: `out` is there. In every case nothing is left at `out`. An interrupt keeps what was observed,
            and the same call goes on from it.
    """
    model_dir, out, progress = Path(model_dir), Path(out), progress or Progress(quiet=True)
    check_free(out, overwrite=overwrite)
    needs_data = recipe.scheme == "w8a8" or recipe.rounding == "gptq"
    if needs_data and not data:
        raise MisuseError(f"{recipe.scheme} by {recipe.rounding} needs text: give --data FILE or --data builtin.")
    if data and not needs_data:
        raise MisuseError(
            f"{recipe.scheme} rounded to nearest reads no text; leave --data out, or ask for --rounding gptq."
        )
    if keep_worst and recipe.scheme != "w8a8":
        raise MisuseError(f"--keep-worst ranks by INT8 activations, which {recipe.scheme} has none of; use --keep.")
    graph = ModelGraph.open(model_dir)
    packed = load_rows(data, Bundle(model_dir, graph.manifest), rows) if needs_data else None
    scratch = out.parent / f".{out.name}.calibration"  # survives an interrupt, and the next run goes on from it
    try:
        with staged_dir(out, overwrite=overwrite) as work:
            result = _Calibration(graph, recipe, packed, keep_worst, progress).run(work, scratch)
    except Exception:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    return result


@dataclass(slots=True)
class _Calibration:
    """One calibration under way."""

    graph: ModelGraph
    recipe: Recipe
    rows: Rows | None
    keep_worst: int
    progress: Progress

    def run(self, work: Path, scratch: Path) -> Calibrated:
        """Quantize, then write the model directory into `work`."""
        with self.progress.phase(f"quantizing to {self.recipe.scheme}"):
            prepared = self._prepare(scratch)
            worst = [name for name in prepared.errors if name in prepared.weights][: self.keep_worst]
            names = prepared.insert(self.graph, set(prepared.weights) - set(worst))
        kept = [linear.name for linear in self.graph.linears if linear.name not in names]
        errors = dict(prepared.errors)
        with self.progress.phase("writing"):
            manifest = self.graph.publish(work, self.recipe.scheme, self._record(kept, errors))
        return Calibrated(manifest, names, kept, errors)

    def _prepare(self, scratch: Path) -> Prepared:
        graph, recipe, progress = self.graph, self.recipe, self.progress
        if recipe.scheme == "w8a8":
            assert self.rows is not None
            return round_all(graph, recipe, self.rows.ids, scratch, progress)
        return round_weights(graph, recipe, None if self.rows is None else self.rows.ids, scratch, progress)

    def _record(self, kept: list[str], errors: dict[str, float]) -> dict[str, object]:
        # The kept linears are part of the recipe: with them it gives the same model again without measuring.
        settled = dataclasses.replace(self.recipe, keep=tuple(name for name in kept if name != "lm_head"))
        return {
            "recipe": settled.to_json(),
            "data": None if self.rows is None else self.rows.to_json(),
            "sensitivity": errors,
        }
