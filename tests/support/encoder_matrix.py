"""Encoder tasks by ways to an answer: what tests/end_to_end/test_encoder_matrix.py runs, and its table."""

from dataclasses import dataclass
from typing import Any

SCHEMES = ("fp", "w8a8")
CPU_TARGETS = ("ort-cpu", "ort-cpu:avx512")
PLAN = "tensorrt-rtx:sm89"
TEXTS = ["hello world", "in paris?", "Héllo 你好 wörld, a b c"]
QUESTION, CONTEXT = "in paris?", "Hello wörld 你好 in paris, a b c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One toy of encoder_fixtures: how it is asked by command and over HTTP, and the method of the runtime."""

    task: str
    method: str
    words: tuple[str, ...]
    path: str
    body: dict[str, Any]


def _each(option: str, texts: list[str]) -> tuple[str, ...]:
    return tuple(word for text in texts for word in (option, text))


_RANKED = {"query": QUESTION, "documents": TEXTS}
# By the name of the toy.
ROWS = {
    "single": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/classify",
        body={"input": TEXTS},
    ),
    "multi": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/v1/moderations",
        body={"input": TEXTS},
    ),
    "regression": Row(
        task="text-classification",
        method="classify",
        words=_each("--text", TEXTS),
        path="/classify",
        body={"input": TEXTS},
    ),
    "tagger": Row(
        task="token-classification",
        method="tag",
        words=(*_each("--text", TEXTS), "--aggregation", "none", "--ignore-label", "nothing"),
        path="/tag",
        body={"input": TEXTS, "aggregation": "none", "ignore_labels": []},
    ),
    "answerer": Row(
        task="question-answering",
        method="answer",
        words=("--question", QUESTION, "--context", CONTEXT),
        path="/answer",
        body={"question": QUESTION, "context": CONTEXT},
    ),
    "embedder": Row(
        task="feature-extraction",
        method="embed",
        words=_each("--text", TEXTS),
        path="/v1/embeddings",
        body={"input": TEXTS},
    ),
    "reranker": Row(
        task="text-ranking",
        method="rerank",
        words=("--query", QUESTION, *_each("--document", TEXTS)),
        path="/v1/rerank",
        body=_RANKED,
    ),
}


def matrix_table() -> str:
    """The table of docs/tasks.md."""
    heads = [
        "task",
        "Python",
        "`piston run`",
        "HTTP",
        *(f"`{target}`" for target in CPU_TARGETS),
        "`tensorrt-rtx` plan",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    schemes = ", ".join(SCHEMES)
    for task in dict.fromkeys(row.task for row in ROWS.values()):
        own = [row for row in ROWS.values() if row.task == task]
        options = dict.fromkeys(word for row in own for word in row.words if word.startswith("--"))
        cells = [
            f"`{task}`",
            f"`{own[0].method}`",
            " ".join(f"`{option}`" for option in options if option not in {"--aggregation", "--ignore-label"}),
            ", ".join(f"`{path}`" for path in dict.fromkeys(row.path for row in own)),
            *[schemes] * (len(CPU_TARGETS) + 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
