"""The table of tasks and targets in docs/tasks.md is what the registries of builders and backends say."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from task_matrix import matrix_table

from piston.core.bundle.interface import DECODER, ENCODER, MODULE
from piston.core.errors import MisuseError
from piston.core.tasks import task_names
from piston.runtime import tasks

pytest.importorskip("onnx_ir")

DOCS = Path(__file__).parents[1] / "docs/tasks.md"
GRAPHS = {
    "text-generation": (DECODER,),
    "text2text-generation": (DECODER, ENCODER),
    "automatic-speech-recognition": (DECODER, ENCODER),
    "module": (MODULE,),
    **dict.fromkeys(
        ("feature-extraction", "question-answering", "text-classification", "text-ranking", "token-classification"),
        (ENCODER,),
    ),
}
TARGETS = ("ort-cpu", "ort-cpu:avx512", "ort-cuda", "tensorrt-rtx", "tensorrt")


def table():
    """A row for each task."""
    from piston.engines.registry import family_of

    def cell(task, target):
        model = SimpleNamespace(graphs=GRAPHS[task], task=task, model=SimpleNamespace(name="a model"))
        try:
            family_of(target).builder(target, model)
        except MisuseError:
            return ""
        return "yes"

    lines = [f"| task | {' | '.join(f'`{target}`' for target in TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    lines += [f"| `{task}` | {' | '.join(cell(task, target) for target in TARGETS)} |" for task in task_names(tasks)]
    return "\n".join(lines)


def test_the_page_of_tasks_has_the_table_of_their_targets():
    assert set(GRAPHS) == set(task_names(tasks))
    assert table() in DOCS.read_text(encoding="utf-8"), table()


def test_the_page_of_tasks_has_the_table_of_the_ways_to_answers_that_are_tested():
    assert matrix_table() in DOCS.read_text(encoding="utf-8"), matrix_table()


def test_the_page_of_tasks_has_the_table_of_the_encoders_that_are_compared_with_transformers():
    pytest.importorskip("torch")
    from encoders import cases_table

    assert cases_table() in DOCS.read_text(encoding="utf-8"), cases_table()
