"""The report of a run as one page."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from piston.core.report import code
from piston.core.report.page import Tile, gates, heading, page, paragraph, stack, swatches, table
from piston.core.units import shown
from piston.pipeline.gates import shown_value
from piston.pipeline.plan import EVAL_PAGE
from piston.pipeline.report import EngineReport, LockReport, Report, StageReport

# Arithmetic -> its words, and its style of the page.
_ARITHMETIC = {
    "int8": ("INT8", "own"),
    "weights8": ("8-bit weights", "faded"),
    "weights4": ("4-bit weights", "c2"),
    "float": ("float", "c7"),
    "unknown": ("not found", "other"),
}
_HEADLINES = {
    "bundle.size": "size",
    "int8": "linears in INT8",
    "eval.ppl_change": "perplexity change",
    "eval.ppl": "perplexity",
    "bench.tpot.p50": "time per token",
    "bench.ttft.p50": "time to first token",
}


def page_of(report: Report) -> str:
    """The whole document."""
    verdict = "published" if report.is_published else "not published"
    lead = [
        paragraph(f"{_mark(is_good=report.is_met)} {verdict}", f"verdict {_style(is_good=report.is_published)}"),
        Markup('<p class="soft">{} to {}</p>').format(code(report.recipe), code(report.bundle)),
    ]
    values = report.values
    tiles = [Tile(label, shown_value(name, values[name])) for name, label in _HEADLINES.items() if name in values]
    parts = [
        *gates(report.gates),
        *(paragraph(f"Verify: {mismatch}", "not-met") for mismatch in report.mismatches),
        *([] if report.lock is None else _lock(report.lock)),
        *_stages(report.stages),
        *_engines(report.engines),
        *_values(report),
        *_provenance(report),
    ]
    footer = f"Written by piston make, Piston {report.piston}."
    return page(f"{report.model}, {report.scheme}", tiles, parts, footer, lead)


def _lock(lock: LockReport) -> Iterator[Markup]:
    is_good = lock.equality != "none"
    said = str(lock.equality) if is_good else "not reproducible"
    yield heading("Locked rebuild")
    yield paragraph(f"{_mark(is_good=is_good)} {said}", _style(is_good=is_good))
    yield paragraph("What differs:" if lock.changed else "Nothing differs.")
    yield from (Markup("<p>{}</p>").format(code(change)) for change in lock.changed)


def _stages(stages: Sequence[StageReport]) -> Iterator[Markup]:
    longest = max((stage.seconds for stage in stages), default=1.0) or 1.0
    rows = [
        (
            stage.name,
            stack([("faded" if stage.is_cached else "own", stage.seconds / longest)]),
            f"{stage.seconds:,.1f} s",
            shown(stage.peak_bytes, "bytes"),
            shown(stage.num_bytes, "bytes") if stage.num_bytes else "-",
            "from the cache" if stage.is_cached else "made now",
        )
        for stage in stages
    ]
    yield heading("Stages")
    yield table(("stage", "time", "", "memory", "written", ""), rows, numbers=(2, 3, 4))
    yield swatches([("made now", "own"), ("from the cache", "faded")])


def _engines(engines: Sequence[EngineReport]) -> Iterator[Markup]:
    rows = []
    for engine in engines:
        shares = [
            (*_ARITHMETIC.get(name, (name, "other")), share) for name, share in engine.linears.items() if share > 0
        ]
        words = ", ".join(f"{share:.1%} {word}" for word, _, share in shares)
        bar = Markup("{}{}").format(stack((style, share) for _, style, share in shares), words)
        rows.append((code(engine.target), engine.dtype, engine.cache, bar if shares else "not counted"))
    yield heading("Actual precision")
    yield table(("engine", "type", "cache", "multiply-adds of the linear layers"), rows)
    for engine in engines:
        if engine.kept:
            kept = Markup(", ").join(map(code, engine.kept))
            yield Markup('<p class="soft">In float, {}: {}.</p>').format(engine.target, kept)


def _values(report: Report) -> Iterator[Markup]:
    named = {name: value for name, value in report.values.items() if name.startswith(("eval.", "bench."))}
    if not named:
        return
    yield heading("Quality and speed")
    yield table(("figure", "value"), [(code(name), shown_value(name, named[name])) for name in sorted(named)])
    if any(stage.name == "eval" for stage in report.stages):
        yield Markup('<p><a href="{}">The evaluation, window by window</a></p>').format(EVAL_PAGE)


def _provenance(report: Report) -> Iterator[Markup]:
    yield heading("Made of")
    yield table(
        ("", ""),
        [
            ("checkpoint", code(report.checkpoint)),
            ("its SHA-256", code(report.checkpoint_sha256 or "of a hub id: see the lock file")),
            ("the recipe's", code(report.recipe_sha256)),
            ("machine", ", ".join(f"{name} {value}" for name, value in report.machine.items())),
            ("tools", ", ".join(f"{name} {version}" for name, version in sorted(report.tools.items()))),
        ],
    )


def _mark(*, is_good: bool) -> str:
    return "✓" if is_good else "✗"


def _style(*, is_good: bool) -> str:
    return "met" if is_good else "not-met"
