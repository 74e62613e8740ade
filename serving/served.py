"""One bundle of a server: its model, and the thread that owns its engine. Each task has a subclass."""

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from piston.serving.engine_thread import EngineThread
from piston.serving.settings import Settings

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.runtime.text.tokenizer import Tokenizer


class Model(Protocol):
    """What `piston.runtime.load` returns, whatever its task."""

    @property
    def manifest(self) -> "Manifest":
        """Of the bundle."""


class TextModel(Model, Protocol):
    """One that reads text."""

    @property
    def tokenizer(self) -> "Tokenizer":
        """Of the bundle."""


class Served(ABC):
    """What the server knows of a bundle.

    Args:
        name: as requests and /v1/models have it.
        model: its model.
        thread: not yet started.
    """

    def __init__(self, name: str, model: Model, thread: EngineThread[Any]) -> None:
        self.name = name
        self.model = model
        self.thread = thread
        self.created = int(time.time())

    @property
    def task(self) -> str:
        """What the bundle is for."""
        return self.model.manifest.task

    @classmethod
    def max_open(cls, num_rows: int, settings: Settings) -> int:
        """Rows that may run and wait; `num_rows` are those that the engine works on at once."""
        queue = settings.max_queue_requests
        return num_rows + (4 * num_rows if queue is None else queue)

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """Tokens of a row, prompt and answer together."""

    @property
    @abstractmethod
    def described(self) -> str:
        """One line: what it holds, on which engine, and what it promises."""

    def to_json(self) -> dict[str, Any]:
        """As /v1/models lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "piston",
            "max_model_len": self.max_model_len,
            "task": self.task,
        }
