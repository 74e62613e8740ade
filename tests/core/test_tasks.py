import pytest

from piston.cli import tasks as cli_tasks
from piston.core.errors import MisuseError
from piston.core.tasks import task_module, task_names
from piston.evaluation import tasks as evaluation_tasks
from piston.export import tasks as export_tasks
from piston.runtime import tasks as runtime_tasks


def test_every_stage_has_every_task():
    names = task_names(runtime_tasks)
    assert {"text-generation", "feature-extraction"} <= set(names)
    for stage in (cli_tasks, export_tasks, evaluation_tasks):
        assert task_names(stage) == names


def test_a_task_is_found_by_its_name():
    assert task_module(runtime_tasks, "feature-extraction").MODEL.TASK == "feature-extraction"


@pytest.mark.parametrize("name", ["", "text_generation", "text-generation.x", "..model", "os"])
def test_a_name_that_is_no_task_imports_nothing(name):
    with pytest.raises(
        MisuseError, match=r"runtime does not know the task .*; it knows automatic-speech-recognition, "
    ):
        task_module(runtime_tasks, name)
