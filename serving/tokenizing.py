"""/tokenize and /detokenize, as vLLM has them."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from piston.serving.access import json_response
from piston.serving.endpoint import Call, Endpoint
from piston.serving.fields import Meta
from piston.serving.served import TextModel


class TokenizeTextRequest(msgspec.Struct, kw_only=True):
    """/tokenize, of an encoder."""

    model: str | UnsetType = UNSET
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """/detokenize."""

    model: str | UnsetType = UNSET
    tokens: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(description="token ids")]


class ServedText(Protocol):
    """A bundle that reads text, behind HTTP."""

    @property
    def model(self) -> TextModel:
        """Its model."""

    @property
    def max_model_len(self) -> int:
        """Tokens of a row."""


async def tokenized(served: ServedText, body: Any, call: Call, encode: Callable[[], list[int]]) -> ASGIApp:
    """An answer of /tokenize."""
    ids = await call.in_worker(encode)
    answer = {"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [served.model.tokenizer.token_of(token_id) for token_id in ids]
    return json_response(answer, headers=call.headers)


async def tokenize_text(served: ServedText, body: TokenizeTextRequest, call: Call) -> ASGIApp:
    """/tokenize of an encoder."""
    tokenizer = served.model.tokenizer
    return await tokenized(
        served, body, call, lambda: tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
    )


async def detokenize(served: ServedText, body: DetokenizeRequest, call: Call) -> ASGIApp:
    """/detokenize."""
    tokenizer = served.model.tokenizer
    text = await call.in_worker(lambda: tokenizer.decode(body.tokens, skip_special_tokens=False))
    return json_response({"prompt": text}, headers=call.headers)


OF_TEXT = {
    "/tokenize": Endpoint(TokenizeTextRequest, tokenize_text),
    "/detokenize": Endpoint(DetokenizeRequest, detokenize),
}
