"""Ranking: documents that changed their place for a query."""

from itertools import combinations
from pathlib import Path

from piston.core.console import Progress
from piston.core.data_files import field_of, read_text, records_of, text_field
from piston.core.errors import MisuseError
from piston.evaluation.diff import Change, Diff, DiffOptions, worst_first
from piston.runtime.tasks.text_ranking import Reranker

DATA = 'records with a "query" and a list of "documents"'
OPTIONS = ("top",)
LISTED = 5  # documents that are named
Record = tuple[str, list[str]]


def differences(before: Reranker, after: Reranker, path: Path, options: DiffOptions, progress: Progress) -> Diff:
    """Rank the documents of every query with both models; orders are compared by Kendall's tau (1938)."""
    records = _records(path)[: options.max_records]
    changed, taus, firsts = [], [], 0
    for index, (query, documents) in enumerate(records):
        progress.step("ranking", index, len(records))
        orders = [
            [ranked.index for ranked in model.rerank(query, documents, truncate=True)] for model in (before, after)
        ]
        tau = kendall_tau(*orders)
        taus.append(tau)
        firsts += orders[0][0] == orders[1][0]
        if orders[0][: options.top] != orders[1][: options.top]:
            place = next(place for place, (old, new) in enumerate(zip(*orders, strict=True)) if old != new)
            changed.append(
                Change(
                    record=index + 1,
                    text=query,
                    before=_listed(orders[0], documents),
                    after=_listed(orders[1], documents),
                    note=f"Kendall's tau {tau:.3f}; the first difference is at place {place + 1}",
                    size=1 - tau + 1 / (place + 1),
                )
            )
    return Diff(
        task="text-ranking",
        num_records=len(records),
        figures=(
            ("kendall_tau", sum(taus) / len(taus), "agreement of the orders, 1 where all are the same"),
            ("equal_first", firsts / len(records), "queries whose best document is the same"),
        ),
        changes=worst_first(changed),
    )


def kendall_tau(left: list[int], right: list[int]) -> float:
    """Pairs in the same order less pairs in the opposite one, over all pairs; 1 for a single item."""
    places = {item: place for place, item in enumerate(right)}
    pairs = [places[first] < places[second] for first, second in combinations(left, 2)]
    return (2 * sum(pairs) - len(pairs)) / len(pairs) if pairs else 1.0


def _records(path: Path) -> list[Record]:
    found = records_of(read_text(path), path)
    if not found:
        raise MisuseError(f"{path} has no records; give {DATA}, as JSON lines.")
    records = []
    for where, record in found:
        documents = field_of(record, ("documents",), where)
        if not isinstance(documents, list) or not documents or not all(isinstance(item, str) for item in documents):
            raise MisuseError(f'{where}, has "documents" {documents!r:.60}; it must be a list of texts, not empty.')
        records.append((text_field(record, ("query",), where), documents))
    return records


def _listed(order: list[int], documents: list[str]) -> str:
    return "\n".join(f"{place}. {documents[index]}" for place, index in enumerate(order[:LISTED], 1))
