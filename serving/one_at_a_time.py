"""A bundle that works on one request at a time, in the order they came, whatever its engine could hold."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from piston.core.errors import MisuseError
from piston.serving.batch_thread import BatchThread
from piston.serving.engine_thread import Limits
from piston.serving.metrics import BatchMetrics, Metrics
from piston.serving.served import Model, Served
from piston.serving.settings import Settings

WAITING = 64  # requests, where --max-queue-requests does not say


class OneAtATime(Served):
    """See Served; a request counts as one token of the queue.

    Attributes:
        INPUTS: what a request brings, for messages.
    """

    INPUTS: ClassVar[str]
    thread: BatchThread[Any]

    def __init__(self, name: str, model: Model, metrics: Metrics, settings: Settings) -> None:
        if settings.max_queue_tokens is not None:
            raise MisuseError(
                f"--max-queue-tokens bounds tokens of prompts, and the {self.INPUTS} of {name} have none; leave it "
                "out, or give them a server of their own."
            )
        num_open = self.max_open(1, settings)
        limits = Limits(num_rows=1, max_open=num_open, max_queue_tokens=num_open)
        thread = BatchThread(name, self.run, BatchMetrics(metrics, name), max_batch_tokens=1, limits=limits)
        super().__init__(name, model, thread)

    @classmethod
    def max_open(cls, num_rows: int, settings: Settings) -> int:
        """See Served; one runs."""
        del num_rows
        return 1 + (WAITING if settings.max_queue_requests is None else settings.max_queue_requests)

    @abstractmethod
    def run(self, rows: Sequence[Any]) -> Iterable[Any]:
        """The result of each request, on the engine thread."""
