"""Extractive question answering: /answer."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving.encoders import ServedEncoder, usage_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.fields import Meta
from piston.serving.tokenizing import OF_TEXT

if TYPE_CHECKING:
    from piston.runtime.tasks.question_answering import QuestionAnswerer


class AnswerRequest(msgspec.Struct, kw_only=True):
    """/answer."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    question: Annotated[str, Meta(description="what is asked")]
    context: Annotated[str, Meta(description="the text with the answer, of any length")]
    allow_no_answer: Annotated[bool, Meta(description="answer nothing where that is most probable")] = False
    max_answer_len: Annotated[int, Meta(ge=1, description="tokens of an answer at most")] = 15
    stride: Annotated[int, Meta(ge=0, description="tokens by which windows overlap (128)")] | UnsetType = UNSET


class ServedAnswerer(ServedEncoder):
    """A model that finds answers, behind HTTP."""

    model: "QuestionAnswerer"


async def answer_question(served: ServedAnswerer, body: AnswerRequest, call: Call) -> ASGIApp:
    """/answer: the best part of the context, by its characters."""
    model = served.model
    stride = body.stride if isinstance(body.stride, int) else None
    rows = await served.encoded(call, 1, lambda: model.rows_of(body.question, body.context, stride=stride))
    ticket = served.ticket(rows, call)

    async def answer() -> dict[str, Any]:
        found = model.answer_of(
            body.context,
            rows,
            await served.outputs(ticket),
            allow_no_answer=body.allow_no_answer,
            max_answer_len=body.max_answer_len,
        )
        return {"model": served.name, **dataclasses.asdict(found), "usage": usage_of(ticket)}

    return call.respond(answer)


serve = ServedAnswerer
ENDPOINTS: Mapping[str, Endpoint] = {"/answer": Endpoint(AnswerRequest, answer_question), **OF_TEXT}
