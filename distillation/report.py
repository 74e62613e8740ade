"""A distillation as one page: what was reached, the curves, the ranking."""

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from markupsafe import Markup

from piston.core.report.chart import Bar, Chart, Curve, bars, curves
from piston.core.report.page import Tile, details, figure, heading, page, paragraph, table
from piston.distillation.result import Distilled


def page_of(result: Distilled) -> str:
    """The page as HTML."""
    footer = f"Written by piston distill, Piston {version('piston')}."
    return page(f"{result.teacher}: distilled", _tiles(result), [*_curves(result), *_ranking(result)], footer)


def _tiles(result: Distilled) -> list[Tile]:
    first, last = result.ends
    teacher, student = result.parameters
    found = last.held_out
    return [
        Tile("KL divergence, held out", f"{found.kl:.4f}", f"nats; {first.held_out.kl:.4f} before training"),
        Tile("perplexity", f"{found.student_ppl:.2f}", f"{found.teacher_ppl:.2f} of the teacher"),
        Tile("top-1 agreement", f"{found.top1:.1%}"),
        Tile("parameters", f"{student / 1e6:,.1f} M", f"{teacher / 1e6:,.1f} M of the teacher"),
        Tile("trained", f"{last.step:,} steps", f"{last.seconds / 60:,.1f} minutes, {result.epochs:.2f} epochs"),
    ]


def _curves(result: Distilled) -> Iterator[Markup]:
    moments = result.run.moments
    steps = [float(item.step) for item in moments]
    trained = [(float(item.step), item.loss) for item in moments if item.loss is not None]
    lines = [Curve("held out", "best", steps, [item.held_out.kl for item in moments])]
    if trained:
        lines.append(Curve("trained rows", "candidate", [step for step, _ in trained], [loss for _, loss in trained]))
    chart = Chart(
        "kl", "KL divergence by step", f"From {moments[0].held_out.kl:.4f} to {moments[-1].held_out.kl:.4f} nats.",
        "steps", "nats",
    )  # fmt: skip
    rows = [
        (
            f"{item.step:,}",
            f"{item.seconds / 60:.1f}",
            "" if item.loss is None else f"{item.loss:.4f}",
            f"{item.held_out.kl:.4f}",
            f"{item.held_out.top1:.1%}",
            f"{item.held_out.student_ppl:.2f}",
        )
        for item in moments
    ]
    numbers = details(["step", "minutes", "loss", "KL, held out", "top-1", "perplexity"], rows)
    yield figure(
        "Training",
        curves(chart, lines),
        "Green: rows that are not trained on. The other: the loss of training.",
        numbers,
    )
    for note in result.notes:
        yield paragraph(note)


def _ranking(result: Distilled) -> Iterator[Markup]:
    ranking = result.ranking
    if ranking.layers:
        chart = Chart("layers", "KL divergence without each layer", "One bar for each layer.", "nats")
        rows = [
            Bar(str(layer), "candidate", value, None, None, f"{value:.4f}") for layer, value in ranking.layers.items()
        ]
        yield figure("Layers", bars(chart, rows), "What the teacher's answers lose when one layer is skipped, in nats.")
    for name, values in (("Channels of MLPs", ranking.channels), ("Key and value heads", ranking.kv_heads)):
        if values:
            cells = [
                (str(layer), f"{np.min(found):.3g}", f"{np.median(found):.3g}", f"{np.max(found):.3g}")
                for layer, found in values.items()
            ]
            yield heading(name)
            yield paragraph("Sums of squares of what each adds to the residual stream.")
            yield table(["layer", "least", "median", "most"], cells, (1, 2, 3))
