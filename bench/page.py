"""The report as one page: inline style and SVG, no script, nothing loaded from anywhere."""

from collections.abc import Iterator, Sequence
from html import escape

from piston.bench.figures import figures_of
from piston.bench.metrics import METRICS, STAGE_METRICS
from piston.bench.report import Report
from piston.bench.table import machine_lines, shown, stage_rows
from piston.core.statistics import Estimate

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d5dae0;--band:#f5f7f9;
--own:#0969da;--rival:#8c959f;--bad:#b42318;--good:#1a7f37;--c1:#bc4c00;--c2:#8250df;--c3:#1a7f37;--c4:#bf3989;--c5:#6e7781;
--c6:#0a7d91;--c7:#9a6700}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--ink:#e6e9ee;--soft:#9aa4b0;--rule:#343b45;--band:#181d24;
--own:#6cb6ff;--rival:#768390;--bad:#ff8a80;--good:#6fdd8b;--c1:#f0883e;--c2:#c69cff;--c3:#6fdd8b;--c4:#ff9bce;--c5:#909dab;
--c6:#56d4dd;--c7:#e3b341}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:62rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--rule)}
th[scope=row]{font-weight:500;color:var(--soft)}
figure{margin:.75rem 0;padding:.75rem;background:var(--band);border:1px solid var(--rule);border-radius:8px}
figcaption,summary{color:var(--soft);font-size:.9rem}summary{cursor:pointer;margin-top:.35rem}
.scroll svg{display:block;width:100%;min-width:34rem;height:auto}
.grid{stroke:var(--rule);stroke-width:1}.tick,.label{fill:var(--soft);font-size:12px}.value{fill:var(--ink)}
.line{fill:none;stroke:var(--rival);stroke-width:2;stroke-linejoin:round}
.point,.bar{fill:var(--rival)}.line.own{stroke:var(--own);stroke-width:3}.point.own,.bar.own{fill:var(--own)}
.line.c1{stroke:var(--c1);stroke-dasharray:7 3}.point.c1,.bar.c1{fill:var(--c1)}
.line.c2{stroke:var(--c2);stroke-dasharray:2 3}.point.c2,.bar.c2{fill:var(--c2)}
.line.c3{stroke:var(--c3);stroke-dasharray:10 4 2 4}.point.c3,.bar.c3{fill:var(--c3)}
.line.c4{stroke:var(--c4);stroke-dasharray:5 5}.point.c4,.bar.c4{fill:var(--c4)}
.line.c5{stroke:var(--c5);stroke-dasharray:1 2}.point.c5,.bar.c5{fill:var(--c5)}
.line.c6{stroke:var(--c6);stroke-dasharray:8 2 2 2 2 2}.point.c6,.bar.c6{fill:var(--c6)}
.line.c7{stroke:var(--c7);stroke-dasharray:12 3}.point.c7,.bar.c7{fill:var(--c7)}
.line.c8{stroke:var(--c1)}.point.c8,.bar.c8{fill:var(--c1)}
.line.c9{stroke:var(--c2)}.point.c9,.bar.c9{fill:var(--c2)}
.line.c10{stroke:var(--c3)}.point.c10,.bar.c10{fill:var(--c3)}
.line.c11{stroke:var(--c4)}.point.c11,.bar.c11{fill:var(--c4)}
.line.c12{stroke:var(--c6)}.point.c12,.bar.c12{fill:var(--c6)}
.line.c13{stroke:var(--c7)}.point.c13,.bar.c13{fill:var(--c7)}
.bar.lost{fill:var(--bad)}.bar.won{fill:var(--good)}
.whisker{fill:none;stroke:var(--ink);stroke-width:1.5}.reference-line{stroke:var(--ink);stroke-dasharray:4 3}
.key{display:inline-block;width:28px;height:4px;vertical-align:middle;margin:0 .35em 0 1em}
.entry{white-space:nowrap}
.gate{font-weight:500}.gate.met{color:var(--good)}.gate.not-met{color:var(--bad)}
code{font:.9em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
"""
_QUANTILES = ("p50", "p90", "p95", "p99")


def page_of(report: Report) -> str:
    """The whole document."""
    title = f"{escape(report.systems[0].name)}: benchmark"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
        *(f'<p class="soft">{escape(line)}</p>' for line in machine_lines(report)),
        *_gates(report),
        *figures_of(report),
        *_details(report),
        f'<p class="soft">Written by piston bench, Piston {escape(report.piston)}, {escape(report.date)}.</p>',
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of text; the first cell of a row is its head."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in heads)
    body = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    ]
    return ['<div class="scroll"><table>', f"<thead><tr>{head}</tr></thead><tbody>", *body, "</tbody></table></div>"]


def _gates(report: Report) -> Iterator[str]:
    if report.baseline is not None:
        notes = "".join(f"<li>differs: {escape(note)}</li>" for note in report.baseline.notes)
        yield "<h2>Against the baseline</h2>"
        yield f"<p>{report.baseline.kind} <code>{escape(report.baseline.path)}</code></p>"
        yield f"<ul>{notes}</ul>" if notes else ""
    if report.gates:
        yield "<h2>Gates</h2><ul>"
        for gate in report.gates:
            chance = "" if gate.false_alarm is None else f" (false alarms: {gate.false_alarm:.2%} of equal runs)"
            mark, style = ("✓", "met") if gate.is_met else ("✗", "not-met")
            text = escape(f"{gate}{chance}")
            yield f'<li class="gate {style}">{mark} {"met" if gate.is_met else "not met"}: {text}</li>'
        yield "</ul>"


def _details(report: Report) -> Iterator[str]:
    yield "<h2>All figures</h2>"
    if report.systems[0].stages:
        yield from table(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))
        return
    for system in report.systems:
        versions = ", ".join(f"{name} {version}" for name, version in system.versions.items())
        yield f"<details><summary>{escape(system.name)} ({escape(versions)})</summary>"
        for measured in system.settings:
            rows = [_row(name, measured.metrics[name]) for name in measured.metrics]
            yield from table([measured.setting.name, *_QUANTILES], rows)
        if system.metrics:
            yield from table(["new processes", *_QUANTILES], [_row(name, m) for name, m in system.metrics.items()])
        yield "</details>"


def _row(name: str, quantiles: dict[str, Estimate]) -> list[str]:
    return [METRICS[name].described, *(shown(name, quantiles[quantile]) for quantile in _QUANTILES)]
