"""Sentence embeddings: /v1/embeddings."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving import encoders
from piston.serving.encoders import ServedEncoder, Truncate, max_tokens_of, num_texts, usage_of
from piston.serving.endpoint import Call, Endpoint
from piston.serving.errors import RequestError
from piston.serving.fields import NO_MECHANISM, Json, Meta, Refused
from piston.serving.prompts import id_lists
from piston.serving.tokenizing import OF_TEXT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from piston.runtime.tasks.feature_extraction import Embedder


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """/v1/embeddings."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    input: Annotated[str | list[Any], Meta(description="text, token ids as they are, or a list of such")]
    dimensions: Annotated[int, Meta(ge=1, description="the first so many, of length 1 again")] | UnsetType = UNSET
    encoding_format: Literal["float", "base64"] = "float"
    truncate_prompt_tokens: Truncate = UNSET
    prompt_name: Annotated[str | UnsetType, Meta(description="which prompt of the checkpoint goes in front")] = UNSET
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    metadata: Annotated[Json | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET


REFUSED = encoders.REFUSED | {
    "add_special_tokens": Refused("send token ids instead", (True,)),
    "normalize": Refused("the bundle's graph decides", ()),
    "embed_dtype": Refused("vectors are float32", ("float32",)),
    "endianness": Refused("vectors are little-endian", ("native", "little")),
    "messages": Refused("send input"),
    "cache_salt": Refused("nothing is cached"),
    "mm_processor_kwargs": Refused(NO_MECHANISM),
}


class ServedEmbedder(ServedEncoder):
    """An embedding model behind HTTP; its rows are lists of token ids."""

    RESULTS = "vectors"
    model: "Embedder"

    def run(self, rows: Sequence[list[int]]) -> "list[NDArray[np.float32]]":
        """See ServedEncoder."""
        return list(self.model.embed_tokens(rows))


async def embed(served: ServedEmbedder, body: EmbeddingsRequest, call: Call) -> ASGIApp:
    """/v1/embeddings."""
    model = served.model
    if isinstance(body.dimensions, int) and body.dimensions > model.dimensions:
        raise RequestError(
            f"dimensions is {body.dimensions}; it must be from 1 to {model.dimensions}.", param="dimensions"
        )
    ticket = served.ticket(await served.encoded(call, num_texts(body.input), partial(_rows, model, body)), call)

    async def answer() -> bytes:
        vectors = await served.outputs(ticket)
        return await call.in_worker(partial(_encoded, served, body, vectors, usage_of(ticket)))

    return call.respond(answer)


def _rows(model: "Embedder", body: EmbeddingsRequest) -> list[list[int]]:
    """Token ids of each text.

    Raises:
        RequestError, MisuseError, PromptTooLongError: it is neither text nor ids, or it is empty or too long.
    """
    limit = max_tokens_of(body.truncate_prompt_tokens, model)
    prompt_name = None if body.prompt_name is UNSET else body.prompt_name
    texts = [body.input] if isinstance(body.input, str) else body.input
    if texts and all(isinstance(text, str) for text in texts):
        return model.encode(texts, prompt_name=prompt_name, max_tokens=limit)
    if prompt_name is not None:
        raise RequestError("prompt_name goes in front of texts, not of token ids; leave it out.", param="prompt_name")
    rows = id_lists(texts, model.manifest.model.vocab_size, "input")
    return [_checked(row, n, model.max_length, limit) for n, row in enumerate(rows)]


def _checked(row: list[int], n: int, max_length: int, limit: int | None) -> list[int]:
    if not row:
        raise RequestError(f"input[{n}] is empty; leave it out.", param="input")
    if limit is None and len(row) > max_length:
        raise RequestError(
            f"input[{n}] has {len(row):,} tokens; the model reads up to {max_length:,}. Shorten it, or let its end be "
            "cut off with truncate_prompt_tokens.",
            param="input",
        )
    return row[: max_length if limit is None else min(limit, max_length)]


def _encoded(
    served: ServedEmbedder, body: EmbeddingsRequest, vectors: "Sequence[NDArray[np.float32]]", usage: dict[str, int]
) -> bytes:
    """The answer. Vectors in base64 are the bytes of little-endian float32 numbers."""
    import numpy as np

    whole = np.stack(vectors)
    if isinstance(body.dimensions, int):
        whole = served.model.shortened(whole, body.dimensions)
    if body.encoding_format == "base64":
        shown: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in whole]
    else:
        shown = whole.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(shown)]
    return msgspec.json.encode({"object": "list", "data": data, "model": served.name, "usage": usage})


serve = ServedEmbedder
ENDPOINTS: Mapping[str, Endpoint] = {"/v1/embeddings": Endpoint(EmbeddingsRequest, embed, REFUSED), **OF_TEXT}
