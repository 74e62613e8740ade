"""Reranking: /v1/rerank and /rerank, in the form of Jina's and Cohere's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving.encoders import REFUSED, ServedEncoder, Truncate, max_tokens_of, usage_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import RequestError
from piston.serving.fields import Meta
from piston.serving.tokenizing import OF_TEXT

if TYPE_CHECKING:
    from piston.runtime.tasks.text_ranking import Reranker


class RerankRequest(msgspec.Struct, kw_only=True):
    """/v1/rerank and /rerank."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    query: Annotated[str, Meta(description="what is looked for")]
    documents: Annotated[list[Any], Meta(description='texts, or objects with a "text"')]
    top_n: Annotated[int, Meta(ge=1, description="keep the best so many")] | UnsetType = UNSET
    return_documents: Annotated[bool, Meta(description="with each result its document")] = True
    raw_scores: Annotated[bool, Meta(description="logits in place of what the model's authors make of them")] = False
    instruction: Annotated[str | UnsetType, Meta(description="what a language model is to look for")] = UNSET
    truncate_prompt_tokens: Truncate = UNSET
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET


class ServedReranker(ServedEncoder):
    """A reranker behind HTTP."""

    model: "Reranker"


async def rerank(served: ServedReranker, body: RerankRequest, call: Call) -> ASGIApp:
    """/v1/rerank: documents with their scores, best first."""
    model, documents = served.model, _documents(body.documents)
    limit = max_tokens_of(body.truncate_prompt_tokens, model)
    instruction = body.instruction if isinstance(body.instruction, str) else None

    def encode() -> list[Any]:
        return [
            model.row(
                body.query, document, what=f"documents[{n}] with the query", max_tokens=limit, instruction=instruction
            )
            for n, document in enumerate(documents)
        ]

    ticket = served.ticket(await served.encoded(call, len(documents), encode), call)

    async def answer() -> dict[str, Any]:
        import numpy as np

        scores = model.scores_of(np.stack(await served.outputs(ticket)), raw_scores=body.raw_scores)
        order = np.argsort(-scores, kind="stable")[: body.top_n if isinstance(body.top_n, int) else None]
        results: list[dict[str, Any]] = []
        for index in order.tolist():
            document = {"document": {"text": documents[index]}} if body.return_documents else {}
            results.append({"index": index, "relevance_score": float(scores[index]), **document})
        return {
            "id": f"rerank-{call.caller.request_id}",
            "model": served.name,
            "results": results,
            "usage": usage_of(ticket),
        }

    return call.respond(answer)


def _documents(given: list[Any]) -> list[str]:
    items = [item.get("text") if isinstance(item, dict) else item for item in given]
    texts = [item for item in items if isinstance(item, str)]
    if not texts or len(texts) < len(items):
        raise RequestError('documents must be a list of texts, or of objects with a "text".', param="documents")
    return texts


serve = ServedReranker
_RERANK = Endpoint(RerankRequest, rerank, REFUSED)
ENDPOINTS: Mapping[str, Endpoint] = {"/v1/rerank": _RERANK, "/rerank": _RERANK, **OF_TEXT}
