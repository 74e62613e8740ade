"""Tasks by name: each is a module of the package `tasks` of a stage, and there is no table of them to edit.

The module of the task `feature-extraction` is `feature_extraction`.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from piston.core.errors import MisuseError


def task_names(package: ModuleType) -> list[str]:
    """The tasks of a stage, in alphabetical order."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__))


def task_module(package: ModuleType, task: str) -> Any:
    """The module of a task; raises MisuseError where the stage does not have it."""
    names = task_names(package)
    if task not in names:
        stage = package.__name__.split(".")[1]
        raise MisuseError(f"Piston's {stage} does not know the task {task!r}; it knows {', '.join(names)}.")
    return importlib.import_module(f"{package.__name__}.{task.replace('-', '_')}")
