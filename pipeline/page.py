"""The report as one page: inline style and SVG, no script, nothing loaded from anywhere."""

from collections.abc import Sequence
from html import escape

from piston.core.units import shown
from piston.pipeline.gates import shown_value
from piston.pipeline.plan import EVAL_PAGE
from piston.pipeline.report import EngineReport, Report, StageReport

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d5dae0;--band:#f5f7f9;
--made:#0969da;--cached:#9fb8d4;--good:#1a7f37;--bad:#b42318;
--int8:#0969da;--weights8:#5aa3ec;--weights4:#8250df;--float:#b8860b;--unknown:#8a8f98}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--ink:#e6e9ee;--soft:#9aa4b0;--rule:#343b45;--band:#181d24;
--made:#6cb6ff;--cached:#3d5a7a;--good:#6fdd8b;--bad:#ff8a80;
--int8:#6cb6ff;--weights8:#3f7fc1;--weights4:#c69cff;--float:#e3b341;--unknown:#8a8f98}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.25rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.verdict{display:inline-block;font-weight:600;border:1px solid currentColor;border-radius:99px;padding:.1rem .8rem;
margin:.5rem 0}
.met{color:var(--good)}.not-met{color:var(--bad)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--rule)}
td:first-child{white-space:nowrap}th{font-weight:500;color:var(--soft)}.number{text-align:right;white-space:nowrap}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.bar{display:flex;height:1.1rem;border-radius:4px;overflow:hidden;background:var(--band);min-width:12rem}
.bar span{display:block}
.made{background:var(--made)}.cached{background:var(--cached)}
.int8{background:var(--int8)}.weights8{background:var(--weights8)}.weights4{background:var(--weights4)}
.float{background:var(--float)}.unknown{background:var(--unknown)}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 .9em}
.key:first-child{margin-left:0}
"""
_ARITHMETIC = {
    "int8": "INT8",
    "weights8": "8-bit weights",
    "weights4": "4-bit weights",
    "float": "float",
    "unknown": "not found",
}
_SHARE = 100.0


def page_of(report: Report) -> str:
    """The whole document."""
    title = f"{escape(report.model)}, {escape(report.scheme)}"
    verdict, kind = ("published", "met") if report.is_published else ("not published", "not-met")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
        f'<p class="verdict {kind}">{_mark(is_good=report.is_met)} {verdict}</p>',
        (
            f'<p class="soft"><code>{escape(report.recipe)}</code> to <code>{escape(report.bundle)}</code>, '
            f"{shown_value('bundle.size', report.values['bundle.size'])}</p>"
        ),
        *_gates(report),
        *_lock(report),
        *_stages(report.stages),
        *_engines(report.engines),
        *_values(report),
        *_provenance(report),
        f'<p class="soft">Written by piston make, Piston {escape(report.piston)}.</p></main></body></html>',
    ]
    return "\n".join(parts) + "\n"


def _gates(report: Report) -> list[str]:
    rows = [
        (
            (
                f'<span class="{"met" if gate.is_met else "not-met"}">{_mark(is_good=gate.is_met)} '
                f"{'met' if gate.is_met else 'not met'}</span>"
            ),
            f"<code>{escape(gate.expression)}</code>",
            escape(gate.message),
        )
        for gate in report.gates
    ]
    lines = ["<h2>Gates</h2>", *(_table(("", "required", "measured"), rows) if rows else ["<p>None.</p>"])]
    lines += [f'<p class="not-met">Parts: {escape(parting)}</p>' for parting in report.partings]
    return lines


def _lock(report: Report) -> list[str]:
    if report.lock is None:
        return []
    kind = "not-met" if report.lock.equality == "none" else "met"
    items = [f"<li><code>{escape(change)}</code></li>" for change in report.lock.changed]
    changes = ["<p>What differs:</p><ul>", *items, "</ul>"] if items else ["<p>Nothing differs.</p>"]
    said = "equal in no way" if report.lock.equality == "none" else str(report.lock.equality)
    return [f'<h2>Locked rebuild</h2><p class="{kind}">{_mark(is_good=kind == "met")} {escape(said)}</p>', *changes]


def _stages(stages: Sequence[StageReport]) -> list[str]:
    longest = max((stage.seconds for stage in stages), default=1.0) or 1.0
    rows = [
        (
            escape(stage.name),
            (
                f'<div class="bar"><span class="{"cached" if stage.is_cached else "made"}" '
                f'style="width:{_SHARE * stage.seconds / longest:.2f}%"></span></div>'
            ),
            f"{stage.seconds:,.1f} s",
            f"{stage.peak_bytes / 1e6:,.0f} MB",
            shown(stage.num_bytes, "bytes") if stage.num_bytes else "-",
            "from&nbsp;the&nbsp;cache" if stage.is_cached else "made&nbsp;now",
        )
        for stage in stages
    ]
    legend = '<p class="soft"><span class="key made"></span>made now <span class="key cached"></span>from the cache</p>'
    heads = ("stage", "time", "", "memory", "written", "")
    return ["<h2>Stages</h2>", *_table(heads, rows, numbers=(2, 3, 4)), legend]


def _engines(engines: Sequence[EngineReport]) -> list[str]:
    rows = []
    for engine in engines:
        shares = [(name, share) for name, share in engine.linears.items() if share > 0]
        bar = "".join(
            f'<span class="{name if name in _ARITHMETIC else "unknown"}" style="width:{_SHARE * share:.2f}%"></span>'
            for name, share in shares
        )
        words = ", ".join(f"{share:.1%} {_ARITHMETIC.get(name, escape(name))}" for name, share in shares)
        cells = (f"<code>{escape(engine.target)}</code>", escape(engine.dtype), escape(engine.cache))
        rows.append((*cells, f'<div class="bar">{bar}</div>{words}' if shares else "not counted"))
    lines = ["<h2>Precision got</h2>", *_table(("engine", "type", "cache", "multiply-adds of the linear layers"), rows)]
    for engine in engines:
        if engine.kept:
            kept = ", ".join(f"<code>{escape(name)}</code>" for name in engine.kept)
            lines.append(f'<p class="soft">In float, {escape(engine.target)}: {kept}.</p>')
    return lines


def _values(report: Report) -> list[str]:
    named = {name: value for name, value in report.values.items() if name.startswith(("eval.", "bench."))}
    if not named:
        return []
    rows = [(f"<code>{escape(name)}</code>", shown_value(name, value)) for name, value in sorted(named.items())]
    lines = ["<h2>Quality and speed</h2>", *_table(("figure", "value"), rows)]
    if any(stage.name == "eval" for stage in report.stages):
        lines.append(f'<p><a href="{EVAL_PAGE}">The evaluation, window by window</a></p>')
    return lines


def _provenance(report: Report) -> list[str]:
    rows = [
        ("checkpoint", f"<code>{escape(report.checkpoint)}</code>"),
        ("its SHA-256", f"<code>{escape(report.checkpoint_sha256 or 'of a hub id: see the lock file')}</code>"),
        ("the recipe's", f"<code>{escape(report.recipe_sha256)}</code>"),
        ("machine", escape(", ".join(f"{name} {value}" for name, value in report.machine.items()))),
        ("tools", escape(", ".join(f"{name} {version}" for name, version in sorted(report.tools.items())))),
    ]
    return ["<h2>Made of</h2>", *_table(("", ""), rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """Cells are markup already; columns in `numbers` are aligned to the right."""
    kinds = [' class="number"' if column in numbers else "" for column in range(len(heads))]
    head = "".join(
        f'<th scope="col"{kind}>{text}</th>' if text else f"<td{kind}></td>"
        for text, kind in zip(heads, kinds, strict=True)
    )
    body = [
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    thead = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return [f'<div class="scroll"><table>{thead}<tbody>', *body, "</tbody></table></div>"]


def _mark(*, is_good: bool) -> str:
    return "✓" if is_good else "✗"
