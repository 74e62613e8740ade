"""A bundle of an encoder task behind HTTP: rows of all requests are batched by their tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import UNSET, UnsetType

from piston.serving.batch_thread import BatchThread, BatchTicket
from piston.serving.endpoint import Call
from piston.serving.engine_thread import Limits
from piston.serving.errors import RequestError
from piston.serving.fields import Meta, Refused
from piston.serving.metrics import BatchMetrics, Metrics
from piston.serving.served import Served
from piston.serving.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from piston.runtime.encoder import EncodedRow, EncoderModel

MAX_OPEN = 4096  # rows; OpenAI's API takes up to 2,048 texts in one request
WAITING_BATCHES = 16
Result = TypeVar("Result")
Truncate = (
    Annotated[int, Meta(ge=-1, description="cut ends of longer texts, -1: at the model's limit; else refused")]
    | UnsetType
)
REFUSED = {
    "truncation_side": Refused("a text is cut at its end", ("right",)),
    "priority": Refused("requests are served in the order they come", (0,)),
}


class ServedEncoder(Served):
    """A model whose rows are what the tokenizer makes of texts, and whose results are the graph's outputs."""

    RESULTS = "scores"  # what the log calls them
    model: "EncoderModel"
    thread: BatchThread[Any]

    def __init__(self, name: str, model: "EncoderModel", metrics: Metrics, settings: Settings) -> None:
        tokens, queued = model.max_batch * model.max_length, settings.max_queue_tokens
        limits = Limits(
            num_rows=model.max_batch,
            max_open=self.max_open(model.max_batch, settings),
            max_queue_tokens=WAITING_BATCHES * tokens if queued is None else queued,
        )
        thread = BatchThread(name, self.run, BatchMetrics(metrics, name), max_batch_tokens=tokens, limits=limits)
        super().__init__(name, model, thread)

    @classmethod
    def max_open(cls, num_rows: int, settings: Settings) -> int:
        """See Served; rows that run count as those that wait, as there are thousands."""
        del num_rows
        return MAX_OPEN if settings.max_queue_requests is None else settings.max_queue_requests

    @property
    def max_model_len(self) -> int:
        """See Served."""
        return self.model.max_length

    @property
    def described(self) -> str:
        """See Served."""
        return (
            f"{self.name}: texts of up to {self.model.max_length:,} tokens, batches of up to "
            f"{self.thread.max_batch_tokens:,}; engine {self.model.target}: {self.RESULTS} may differ in the last bits "
            "with the batch"
        )

    def run(self, rows: Sequence[Any]) -> "list[NDArray[np.float32]]":
        """The result of each row, on the engine thread."""
        return self.model.run(rows)

    async def encoded(self, call: Call, num_texts: int, encode: Callable[[], Result]) -> Result:
        """What `encode` makes of a request's texts, off the event loop.

        Raises:
            RequestError: there are more texts than the queue holds; nothing was encoded.
            QueueFullError: too much waits already; likewise.
        """
        self.thread.check_room(num_texts)
        return await call.in_worker(encode)

    def ticket(self, rows: "Sequence[EncodedRow] | Sequence[list[int]]", call: Call) -> BatchTicket[Any]:
        """The request inside the engine."""
        return BatchTicket(rows, [len(row) for row in rows], call.caller.request_id, call.caller.deadline)

    async def outputs(self, ticket: BatchTicket[Any]) -> "list[NDArray[np.float32]]":
        """The result of each row."""
        return await self.thread.answer(ticket)


def texts_of(given: str | list[Any], name: str = "input") -> list[str]:
    """One text, or several. Raises RequestError for anything else, or none."""
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} must be a text or a list of texts.", param=name)
    return texts


def num_texts(given: str | list[Any]) -> int:
    """Rows of an input: one of a text or of token ids, else one for each item."""
    is_one = isinstance(given, str) or not given or isinstance(given[0], int)
    return 1 if is_one else len(given)


def max_tokens_of(given: int | UnsetType, model: "EncoderModel") -> int | None:
    """The limit that texts are cut to; None where longer ones are refused. Raises RequestError for 0."""
    if given == 0:
        raise RequestError("truncate_prompt_tokens is 0; it must be -1, or 1 or more.", param="truncate_prompt_tokens")
    if given is UNSET or not isinstance(given, int):
        return None
    return model.max_length if given == -1 else given


def usage_of(ticket: BatchTicket[Any]) -> dict[str, int]:
    """As OpenAI's API has it."""
    return {"prompt_tokens": ticket.num_tokens, "total_tokens": ticket.num_tokens}
