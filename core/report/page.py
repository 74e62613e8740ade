"""A page of figures: inline style and SVG, no script, nothing loaded from anywhere."""

from collections.abc import Sequence

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d5dae0;--band:#f5f7f9;
--reference:#8250df;--candidate:#0969da;--bad:#b42318;--good:#1a7f37;--mark:#ffe3a3}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--ink:#e6e9ee;--soft:#9aa4b0;--rule:#343b45;--band:#181d24;
--reference:#c69cff;--candidate:#6cb6ff;--bad:#ff8a80;--good:#6fdd8b;--mark:#6b4e00}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--rule)}
th[scope=row]{font-weight:500;color:var(--soft)}
figure{margin:.5rem 0;padding:.75rem;background:var(--band);border:1px solid var(--rule);border-radius:8px}
figcaption,summary{color:var(--soft);font-size:.9rem}summary{cursor:pointer;margin-top:.35rem}
svg{display:block;width:100%;min-width:34rem;height:auto}
.grid{stroke:var(--rule);stroke-width:1}.tick,.label{fill:var(--soft);font-size:12px}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.reference{stroke:var(--reference);stroke-dasharray:6 3}.line.candidate{stroke:var(--candidate)}
.bar.candidate{fill:var(--candidate)}.point.candidate{fill:var(--candidate)}
.whisker.candidate{stroke:var(--candidate);stroke-width:2}
.key{display:inline-block;width:1.6em;border-top:3px solid;vertical-align:middle;margin-right:.35em}
.key.reference{color:var(--reference);border-top-style:dashed}.key.candidate{color:var(--candidate)}
.gate{font-weight:500}.gate.met{color:var(--good)}.gate.not-met{color:var(--bad)}
article{border:1px solid var(--rule);border-radius:8px;padding:.75rem 1rem;margin:.75rem 0}
article h3{font-size:1rem;margin:0 0 .5rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}
.pair h4{margin:0;font-size:.85rem;color:var(--soft);font-weight:500}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.25rem 0;font:.88rem/1.5 ui-monospace,Menlo,Consolas,monospace}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 .1em;outline:1px solid currentColor}
code{font:.9em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
"""


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """The whole of it; `title` and `body` are markup already, `style` is added to the common one."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
            f"<title>{title}</title><style>{STYLE}{style}</style></head><body><main>",
            f"<h1>{title}</h1>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """A table whose cells are markup already."""
    head = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in heads)
    body = [
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for label, cells in rows
    ]
    return ['<div class="scroll"><table>', f"<thead><tr>{head}</tr></thead><tbody>", *body, "</tbody></table></div>"]


def figure(heading: str, svg: str, caption: str, numbers: Sequence[str]) -> list[str]:
    """A chart with its heading, and its numbers."""
    return [
        f"<h2>{heading}</h2>",
        f'<figure><div class="scroll">{svg}</div><figcaption>{caption}</figcaption>',
        *numbers,
        "</figure>",
    ]


def details(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The numbers of a chart, for who cannot see it or wants them."""
    return ["<details><summary>The numbers as a table</summary>", *table(heads, rows), "</details>"]
