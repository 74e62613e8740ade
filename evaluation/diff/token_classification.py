"""Token classification: spans that appeared, went, or have another label."""

from pathlib import Path

from piston.core.console import Progress
from piston.core.data_files import texts_of
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.runtime.tasks.token_classification import Span, TokenClassifier

DATA = 'texts: one a line, or records with a "text"'


def differences(
    before: TokenClassifier, after: TokenClassifier, path: Path, options: DiffOptions, progress: Progress
) -> Diff:
    """Tag all texts with both models; two spans are equal if characters and label are."""
    texts = texts_of(path)[: options.max_records]
    spans = []
    for done, model in enumerate((before, after)):
        progress.step("tagging", done, 2)
        spans.append(model.tag(texts, truncate=True))
    changed, kept, total = [], 0, 0
    for index, (old, new) in enumerate(zip(*spans, strict=True)):
        lost, gained = _without(old, new), _without(new, old)
        kept += len(old) - len(lost)
        total += max(len(old), len(new))
        if lost or gained:
            changed.append(
                Change(
                    record=index + 1,
                    text=texts[index],
                    before=_listed(lost),
                    after=_listed(gained),
                    note=f"{len(lost)} spans lost, {len(gained)} gained, {len(old) - len(lost)} equal",
                    size=sum(span.score for span in (*lost, *gained)),
                )
            )
    share = kept / total if total else 1.0
    return Diff(
        task="token-classification",
        num_records=len(texts),
        figures=(("equal_spans", share, "spans that both models find"),),
        changes=worst_first(changed),
    )


def _without(spans: list[Span], others: list[Span]) -> list[Span]:
    known = {(span.start, span.end, span.label) for span in others}
    return [span for span in spans if (span.start, span.end, span.label) not in known]


def _listed(spans: list[Span]) -> str:
    return "\n".join(f"{span.label}: {span.text} ({span.score:.2f})" for span in spans) or "none"
