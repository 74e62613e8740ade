"""w8 and w4: codes for the weights, activations left in float; rounded to nearest or by GPTQ."""

from pathlib import Path

from piston.calibration.collect import collect
from piston.calibration.consumers import Gram
from piston.calibration.gptq import gptq
from piston.calibration.graph import ModelGraph
from piston.calibration.integer import weight_of
from piston.calibration.linears import by_input
from piston.calibration.packing import Ids
from piston.calibration.prepared import Prepared
from piston.calibration.recipe import Recipe
from piston.calibration.rounding import Quantized, round_to_nearest
from piston.runtime.console import Progress


def round_weights(graph: ModelGraph, recipe: Recipe, rows: Ids | None, work: Path, progress: Progress) -> Prepared:
    """Codes for the chosen linears' weights. GPTQ needs rows, rounding to nearest none."""
    groups = by_input(recipe.chosen(graph.linears))
    grams: dict[str, Gram] = {}
    if recipe.rounding == "gptq":
        assert rows is not None
        grams = {name: Gram(name, unit_tokens=True) for name in groups}
        collect(graph.directory, rows, grams, work_dir=work / "grams", progress=progress, name="observing")
    weights: dict[str, Quantized] = {}
    linears = [(value, linear) for value, group in groups.items() for linear in group]
    for done, (value, linear) in enumerate(linears):
        progress.step("rounding weights", done, len(linears))
        weight, gram = weight_of(linear), grams.get(value)
        if gram is None:
            weights[linear.name] = round_to_nearest(weight, recipe.grid)
        else:
            assert gram.matrix is not None
            weights[linear.name] = gptq(weight, gram.matrix, recipe.grid)
    return Prepared(weights)
