"""Modules of one's own: /v1/run, arrays in and arrays out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from starlette.types import ASGIApp

from piston.core.arrays import arrays_of, npz_of
from piston.core.errors import EngineError
from piston.runtime.tasks.module import InputError
from piston.serving.batch_thread import BatchThread, BatchTicket
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import RequestError
from piston.serving.fields import Json, Meta
from piston.serving.one_at_a_time import OneAtATime

if TYPE_CHECKING:
    from piston.core.bundle.interface import TensorSpec
    from piston.runtime.tasks.module import Array, Module

MOST_BYTES = 256_000_000  # of the arrays in a form, which may be compressed
NPZ = "application/octet-stream"


class RunRequest(msgspec.Struct, kw_only=True):
    """/v1/run, JSON or a form with a file."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    inputs: Annotated[
        Json | bytes, Meta(description="an array in nested lists for each input; in a form, an .npz file of arrays")
    ]
    response_format: Annotated[
        Literal["json", "npz"], Meta(description="of the outputs: nested lists, null for what is not finite, or a file")
    ] = "json"


class ServedModule(OneAtATime):
    """A module behind HTTP; one request at a time, in the order they came."""

    INPUTS = "arrays"
    model: "Module"
    thread: "BatchThread[dict[str, Array]]"

    @property
    def max_model_len(self) -> int:
        """See Served; a module reads no tokens."""
        return 0

    @property
    def described(self) -> str:
        """See Served."""
        interface = self.model.interface
        return (
            f"{self.name}: {_shown(interface.inputs)} to {_shown(interface.outputs)}, one request at a time; engine "
            f"{self.model.target}"
        )

    def to_json(self) -> dict[str, Any]:
        """See Served, with the inputs and outputs."""
        sides = {"inputs": self.model.interface.inputs, "outputs": self.model.interface.outputs}
        tensors = {
            side: [{"name": item.name, "dtype": item.dtype, "shape": list(item.shape)} for item in group]
            for side, group in sides.items()
        }
        return {key: value for key, value in super().to_json().items() if key != "max_model_len"} | tensors

    def run(self, rows: "Sequence[dict[str, Array]]") -> "Iterator[dict[str, Array]]":
        """The outputs of each request, on the engine thread."""
        for feeds in rows:
            yield self._run(feeds)

    def _run(self, feeds: "dict[str, Array]") -> "dict[str, Array]":
        """The outputs of one request; raises RequestError where its numbers are at fault, such as an index too large.

        That they are, and not the engine, is known of the module's own example: it still runs.
        """
        try:
            return self.model.run(feeds)
        except EngineError as problem:
            self.model.run(self.model.examples[0].inputs)
            raise RequestError(f"The module fails on these inputs: {problem}", param="inputs") from None


async def run(served: ServedModule, body: RunRequest, call: Call) -> ASGIApp:
    """/v1/run: the outputs for arrays of any size that the module takes."""
    served.thread.check_room()
    feeds = await call.in_worker(lambda: _feeds(served.model, body.inputs))
    ticket = BatchTicket([feeds], [1], call.caller.request_id, call.caller.deadline)

    async def outputs() -> "dict[str, Array]":
        (found,) = await served.thread.answer(ticket)
        return dict(found)

    async def as_json() -> dict[str, Any]:
        found = await outputs()
        return {"model": served.name, "outputs": {name: array.tolist() for name, array in found.items()}}

    async def as_file() -> bytes:
        return npz_of(await outputs())

    return call.respond(as_json) if body.response_format == "json" else call.respond(as_file, NPZ)


def _feeds(model: "Module", inputs: Json | bytes) -> "dict[str, Array]":
    """Raises RequestError for arrays that do not fit; its `param` names the input."""
    try:
        return model.checked(arrays_of(inputs, "inputs", MOST_BYTES) if isinstance(inputs, bytes) else inputs)
    except InputError as problem:
        raise RequestError(str(problem), param=f"inputs.{problem.name}") from None


def _shown(tensors: "Sequence[TensorSpec]") -> str:
    return ", ".join(f"{item.name} {item.dtype}[{', '.join(map(str, item.shape))}]" for item in tensors)


serve = ServedModule
ENDPOINTS: Mapping[str, Endpoint] = {"/v1/run": Endpoint(RunRequest, run)}
