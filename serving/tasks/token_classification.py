"""Token classification: /tag."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving.encoders import REFUSED, ServedEncoder, Truncate, max_tokens_of, texts_of, usage_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import RequestError
from piston.serving.fields import Meta
from piston.serving.tokenizing import OF_TEXT

if TYPE_CHECKING:
    from tokenizers import Encoding

    from piston.runtime.tasks.token_classification import TokenClassifier


class TagRequest(msgspec.Struct, kw_only=True):
    """/tag."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    input: Annotated[str | list[Any], Meta(description="a text or a list of texts")]
    aggregation: Annotated[
        Literal["none", "simple", "first", "average", "max"],
        Meta(description="how tokens become spans, as in transformers' pipeline"),
    ] = "simple"
    ignore_labels: Annotated[list[str], Meta(description="labels that are left out")] = msgspec.field(
        default_factory=lambda: ["O"]
    )
    stride: Annotated[int, Meta(ge=0, description="read long texts in windows with this overlap")] | UnsetType = UNSET
    truncate_prompt_tokens: Truncate = UNSET


class ServedTagger(ServedEncoder):
    """A token classifier behind HTTP."""

    model: "TokenClassifier"


async def tag(served: ServedTagger, body: TagRequest, call: Call) -> ASGIApp:
    """/tag: the labelled parts of each text, by their characters."""
    model, texts = served.model, texts_of(body.input)
    limit = max_tokens_of(body.truncate_prompt_tokens, model)
    stride = body.stride if isinstance(body.stride, int) else None
    if stride is not None and (limit is not None or body.aggregation == "none"):
        raise RequestError("stride goes with neither truncation nor aggregation none; leave one out.", param="stride")

    def encode() -> "list[list[Encoding]]":
        return [
            [model.encoding(text, what=f"input[{n}]", max_tokens=limit)]
            if stride is None
            else model.windows(text, what=f"input[{n}]", length=model.max_length, stride=stride)
            for n, text in enumerate(texts)
        ]

    windows = await served.encoded(call, len(texts), encode)
    ticket = served.ticket([row for rows in windows for row in rows], call)

    async def answer() -> dict[str, Any]:
        from piston.runtime.tasks.token_classification import merged

        outputs = iter(await served.outputs(ticket))
        data = []
        for index, (text, rows) in enumerate(zip(texts, windows, strict=True)):
            found = [model.spans(text, row, next(outputs), body.aggregation, body.ignore_labels) for row in rows]
            data.append({"index": index, "spans": [dataclasses.asdict(span) for span in merged(found)]})
        return {"object": "list", "model": served.name, "data": data, "usage": usage_of(ticket)}

    return call.respond(answer)


serve = ServedTagger
ENDPOINTS: Mapping[str, Endpoint] = {"/tag": Endpoint(TagRequest, tag, REFUSED), **OF_TEXT}
