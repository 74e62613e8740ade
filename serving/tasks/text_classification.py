"""Text classification: /classify as vLLM has it, /v1/moderations where a text may have several labels, decisions."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving.classifier_decisions import decide
from piston.serving.decision_fields import REFUSED as DECISIONS_REFUSED
from piston.serving.decision_fields import DecisionsRequest
from piston.serving.encoders import REFUSED, ServedEncoder, Truncate, max_tokens_of, num_texts, texts_of, usage_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import RequestError
from piston.serving.fields import Meta
from piston.serving.tokenizing import OF_TEXT

if TYPE_CHECKING:
    from piston.runtime.encoder import EncodedRow
    from piston.runtime.tasks.text_classification import TextClassifier


class ClassifyRequest(msgspec.Struct, kw_only=True):
    """/classify."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    input: Annotated[
        str | list[Any], Meta(description="a text, or a list of texts and of pairs [text, text] that are read together")
    ]
    truncate_prompt_tokens: Truncate = UNSET
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET


class ModerationsRequest(msgspec.Struct, kw_only=True):
    """/v1/moderations."""

    input: Annotated[str | list[Any], Meta(description="a text or a list of texts")]
    model: Annotated[str, Meta(description="one of /v1/models, that gives a text several labels")]


class ServedClassifier(ServedEncoder):
    """A classifier behind HTTP."""

    model: "TextClassifier"


async def classify(served: ServedClassifier, body: ClassifyRequest, call: Call) -> ASGIApp:
    """/classify: the best label of each text, with the scores of all labels in `probs`."""
    model = served.model
    limit = max_tokens_of(body.truncate_prompt_tokens, model)
    ticket = served.ticket(
        await served.encoded(call, num_texts(body.input), lambda: _rows(model, body.input, limit)), call
    )

    async def answer() -> dict[str, Any]:
        import numpy as np

        scores = model.scores_of(np.stack(await served.outputs(ticket)))
        data = [
            {
                "index": index,
                "label": model.labels[int(row.argmax())],
                "probs": row.tolist(),
                "num_classes": len(model.labels),
                "labels": list(model.labels),
            }
            for index, row in enumerate(scores)
        ]
        return {
            "id": f"classify-{call.caller.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": served.name,
            "data": data,
            "usage": usage_of(ticket),
        }

    return call.respond(answer)


async def moderate(served: ServedClassifier, body: ModerationsRequest, call: Call) -> ASGIApp:
    """/v1/moderations: each label is a category; a text is flagged where a score reaches its threshold."""
    model = served.model
    if model.problem_type != "multi_label":
        raise RequestError(
            f"{served.name} gives a text one label, which does not say what is to be flagged; use /classify.",
            param="model",
        )
    texts = texts_of(body.input)
    rows = await served.encoded(
        call, len(texts), lambda: [model.row(text, what=f"input[{n}]") for n, text in enumerate(texts)]
    )
    ticket = served.ticket(rows, call)

    async def answer() -> dict[str, Any]:
        import numpy as np

        results = []
        for row in model.scores_of(np.stack(await served.outputs(ticket))).tolist():
            scores = dict(zip(model.labels, row, strict=True))
            categories = {label: score >= model.thresholds.get(label, 0.5) for label, score in scores.items()}
            results.append(
                {
                    "flagged": any(categories.values()),
                    "categories": categories,
                    "category_scores": scores,
                    "category_applied_input_types": {label: ["text"] for label in scores},
                }
            )
        return {"id": f"modr-{call.caller.request_id}", "model": served.name, "results": results}

    return call.respond(answer)


def _rows(model: "TextClassifier", given: str | list[Any], limit: int | None) -> "list[EncodedRow]":
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise RequestError("input is empty; give a text or a list of texts.", param="input")
    rows = []
    for n, text in enumerate(texts):
        parts = text if isinstance(text, list) else [text]
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) for part in parts):  # noqa: PLR2004
            raise RequestError(f"input[{n}] must be a text, or a list of two that are read together.", param="input")
        rows.append(model.row(*parts, what=f"input[{n}]", max_tokens=limit))
    return rows


serve = ServedClassifier
ENDPOINTS: Mapping[str, Endpoint] = {
    "/classify": Endpoint(ClassifyRequest, classify, REFUSED),
    "/v1/moderations": Endpoint(ModerationsRequest, moderate),
    "/v1/decisions": Endpoint(DecisionsRequest, decide, DECISIONS_REFUSED),
    **OF_TEXT,
}
