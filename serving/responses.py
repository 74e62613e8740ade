"""/v1/responses, the stateless part: a chat in another form, and its events."""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from piston.runtime.model import LanguageModel
from piston.serving.answers import Answers, Row
from piston.serving.endpoint import Caller
from piston.serving.errors import RequestError
from piston.serving.event_stream import event
from piston.serving.generation_fields import ChatRequest, ResponsesRequest
from piston.serving.generation_thread import Piece, Ticket
from piston.serving.structured import Grammars
from piston.serving.tool_call_parser import Part
from piston.serving.work import Work, chat_work

MESSAGE_KEYS = {"type", "role", "content", "id", "status", "phase"}
SAME = ("temperature", "top_p", "stream", "cache_salt", "chat_template_kwargs", "model")


def responses_work(model: LanguageModel, grammars: Grammars, request: ResponsesRequest, caller: Caller) -> Work:
    """The rows of a response; errors as of `chat_work`."""
    fields: dict[str, Any] = {name: getattr(request, name) for name in SAME}
    fields |= {"messages": _messages(request), "max_tokens": request.max_output_tokens}
    if request.text is not UNSET:
        fields["response_format"] = _format(request.text)
    if request.reasoning is not UNSET:
        if unknown := request.reasoning.keys() - {"effort"}:
            raise RequestError(f"reasoning.{min(unknown)} is not supported; leave it out.", param="reasoning")
        fields["reasoning_effort"] = request.reasoning.get("effort") or UNSET
    return chat_work(model, grammars, ChatRequest(**fields), caller)


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages = [] if request.instructions is UNSET else [{"role": "system", "content": request.instructions}]
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for n, item in enumerate(request.input):
        kind = item.get("type", "message") if isinstance(item, Mapping) else type(item).__name__
        if kind != "message":
            raise RequestError(f"input[{n}] is of type {kind!r}; only messages are supported.", param="input")
        if unknown := item.keys() - MESSAGE_KEYS:
            raise RequestError(f"input[{n}].{min(unknown)} is not supported; leave it out.", param="input")
        messages.append({key: item[key] for key in ("role", "content") if key in item})
    return messages


def _format(text: Mapping[str, Any]) -> Any:
    """`text.format` as `response_format` has it."""
    if unknown := text.keys() - {"format"}:
        raise RequestError(f"text.{min(unknown)} is not supported; leave it out.", param="text")
    wanted = text.get("format")
    if not isinstance(wanted, Mapping):
        return UNSET
    if wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: wanted[key] for key in wanted if key != "type"}}
    return dict(wanted)


class ResponsesAnswers(Answers):
    """Items of output: a message, and before it what the model reasoned."""

    def __init__(self, model: str, work: Work, ticket: Ticket) -> None:
        super().__init__(model, work, ticket)
        self._id = f"resp_{ticket.request_id}"
        self._items: list[dict[str, Any]] = []
        self._new: list[Part] = []
        self._number = -1
        self._num_reasoning = 0  # tokens until the reasoning ended

    def take(self, row: Row, piece: Piece) -> None:
        """See Answers."""
        self._new = row.parser.push(piece.text) + (row.parser.flush() if piece.is_last else [])

    async def answer(self) -> dict[str, Any]:
        """See Answers."""
        async for _ in self.events():
            pass
        return self._response(self._status())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See Answers; an item is closed when the next one begins."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                for part in self._new:
                    kind = "reasoning" if part.kind == "reasoning" else "message"
                    if not self._items or self._items[-1]["type"] != kind:
                        for data in (*self._closed("completed"), *self._opened(kind)):
                            yield data
                    self._items[-1]["content"][0]["text"] += part.text
                    yield self._event(f"{self._prefix()}.delta", **self._place(), delta=part.text, **self._logprobs())
                if self._items and self._items[-1]["type"] == "reasoning":
                    self._num_reasoning = piece.num_tokens
        status = self._status()
        for data in self._closed(status):
            yield data
        yield self._event(f"response.{status}", response=self._response(status))

    def _opened(self, kind: str) -> list[bytes]:
        if kind == "reasoning":
            item: dict[str, Any] = {"id": f"rs_{uuid.uuid4().hex}", "type": kind, "summary": [], "content": []}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": kind, "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["status"] = "in_progress"
        self._items.append(item)
        added = self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        item["content"].append(part)
        return [added, self._event("response.content_part.added", **self._place(), part=part)]

    def _closed(self, status: str) -> list[bytes]:
        if not self._items:
            return []
        item = self._items[-1]
        item["status"] = status
        (part,) = item["content"]
        return [
            self._event(f"{self._prefix()}.done", **self._place(), text=part["text"], **self._logprobs()),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=len(self._items) - 1, item=item),
        ]

    def _prefix(self) -> str:
        return "response.reasoning_text" if self._items[-1]["type"] == "reasoning" else "response.output_text"

    def _logprobs(self) -> dict[str, Any]:
        return {} if self._items[-1]["type"] == "reasoning" else {"logprobs": []}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number} | fields, kind)

    def _status(self) -> str:
        return "incomplete" if self.rows[0].finish_reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        sampling, usage = self._work.generations[0].sampling, self.usage()
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning},
            "total_tokens": usage["total_tokens"],
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._base["created"],
            "model": self._base["model"],
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_tokens,
            "store": False,
            "usage": None if status == "in_progress" else tokens,
        }
