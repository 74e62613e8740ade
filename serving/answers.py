"""Pieces of text become OpenAI's answers, whole or as chunks of a stream."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from piston.runtime.generate.completion import PositionLogprobs, TokenLogprob
from piston.serving.event_stream import DONE, event
from piston.serving.generation_thread import Piece, Ticket
from piston.serving.output_parser import OutputParser
from piston.serving.tool_call_parser import Part
from piston.serving.work import Work


@dataclass(slots=True)
class Row:
    """What one row has got so far."""

    parser: OutputParser
    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    positions: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0


class Answers:
    """Of one request. The shape of a choice is the subclass's."""

    prefix = ""
    whole = ""
    chunk = ""

    def __init__(self, model: str, work: Work, ticket: Ticket) -> None:
        self._work = work
        self._ticket = ticket
        self._base = {"id": f"{self.prefix}{ticket.request_id}", "created": int(time.time()), "model": model}
        self.rows = [Row(work.new_parser()) for _ in range(work.num_choices)]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces of all rows until each has ended; an error of one ends the request, and the other rows."""
        num_left = len(self.rows)
        try:
            while num_left:
                piece = await self._ticket.pieces.get()
                if piece.error is not None:
                    raise piece.error
                row = self.rows[piece.row]
                self.take(row, piece)
                row.positions += piece.positions
                row.finish_reason, row.num_tokens = piece.finish_reason, piece.num_tokens
                num_left -= piece.is_last
                yield piece
        finally:
            self._ticket.cancel()

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        async for _ in self.pieces():
            pass
        choices = [self.choice(index, row) for index, row in enumerate(self.rows)]
        return self._base | {"object": self.whole, "choices": choices, "usage": self.usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as a stream."""
        has_begun: set[int] = set()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                chunks = self.chunks(piece, is_first=piece.row not in has_begun)
                has_begun.add(piece.row)
                if chunks:
                    yield b"".join(event(self._chunk(chunk)) for chunk in chunks)
        if self._work.include_usage:
            yield event(self._base | {"object": self.chunk, "choices": [], "usage": self.usage()})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage: dict[str, Any] = {"usage": None} if self._work.include_usage else {}
        if self._work.continuous_usage:
            usage = {"usage": self.usage()}
        return self._base | {"object": self.chunk, "choices": [choice]} | usage

    def take(self, row: Row, piece: Piece) -> None:
        """Note the text of a piece."""
        row.text += piece.text

    def choice(self, index: int, row: Row) -> dict[str, Any]:
        """One element of `choices` of a whole answer."""
        raise NotImplementedError

    def chunks(self, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        """Elements of `choices`, one for each chunk that a piece becomes."""
        raise NotImplementedError

    def usage(self) -> dict[str, Any]:
        """Tokens so far; those of a prompt count once, however many answers it has."""
        requests = [generation.request for generation in self._work.generations]
        num_answers = self._work.generations[0].sampling.n
        prompts = requests[::num_answers]
        num_prompt = sum(request.num_given for request in prompts)
        num_output = 0 if self._work.only_prompt else sum(row.num_tokens for row in self.rows)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": sum(request.num_cached for request in prompts)},
        }


class ChatAnswers(Answers):
    """/v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, work: Work, ticket: Ticket) -> None:
        super().__init__(model, work, ticket)
        self._new: list[Part] = []  # parts of the piece that came last

    def take(self, row: Row, piece: Piece) -> None:
        """See Answers."""
        self._new = row.parser.push(piece.text) + (row.parser.flush() if piece.is_last else [])
        for part in self._new:
            if part.kind == "tool_call":
                row.calls.append(_call(part))
            elif part.kind == "tool_arguments":
                row.calls[-1]["function"]["arguments"] += part.text
            elif part.kind == "reasoning":
                row.reasoning += part.text
            else:
                row.text += part.text

    def choice(self, index: int, row: Row) -> dict[str, Any]:
        """See Answers."""
        message: dict[str, Any] = {"role": "assistant", "content": row.text or None, "refusal": None}
        if not row.calls and not row.reasoning:
            message["content"] = row.text
        if row.reasoning:
            message |= _reasoning(row.reasoning)
        if row.calls:
            message["tool_calls"] = row.calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(row.positions),
            "finish_reason": self._reason(index),
        }

    def chunks(self, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        """See Answers."""
        found = []
        if is_first:
            found.append(self._delta(piece.row, {"role": "assistant", "content": ""}))
        deltas = self._deltas(piece.row)
        if piece.positions and not deltas:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            found.append(self._delta(piece.row, delta, piece.positions if number == 0 else ()))
        if piece.is_last:
            found.append(self._delta(piece.row, {}, finish_reason=self._reason(piece.row)))
        return found

    def _deltas(self, index: int) -> list[dict[str, Any]]:
        """What came last. A call begins with its id, its place among the calls and its name; its arguments follow."""
        deltas: list[dict[str, Any]] = []
        calls = self.rows[index].calls
        place = len(calls) - sum(part.kind == "tool_call" for part in self._new) - 1
        for part in self._new:
            if part.kind == "tool_call":
                place += 1
                begun = {"id": calls[place]["id"], "type": "function"}
                function = {"name": part.name, "arguments": part.text}
                deltas.append({"tool_calls": [{"index": place} | begun | {"function": function}]})
            elif part.kind == "tool_arguments":
                deltas.append({"tool_calls": [{"index": place, "function": {"arguments": part.text}}]})
            else:
                deltas.append(_reasoning(part.text) if part.kind == "reasoning" else {"content": part.text})
        return deltas

    def _reason(self, index: int) -> str | None:
        row = self.rows[index]
        return "tool_calls" if row.calls and row.finish_reason == "stop" else row.finish_reason

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        positions: Sequence[PositionLogprobs] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        logprobs = self._logprobs(positions) if positions else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> dict[str, Any] | None:
        if not self._work.generations[0].sampling.logprobs:
            return None
        content = [
            _token(position.chosen) | {"top_logprobs": [_token(token) for token in position.top]}
            for position in positions
        ]
        return {"content": content, "refusal": None}


class CompletionAnswers(Answers):
    """/v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str, work: Work, ticket: Ticket) -> None:
        super().__init__(model, work, ticket)
        self._offsets = [0] * work.num_choices

    def choice(self, index: int, row: Row) -> dict[str, Any]:
        """See Answers."""
        if self._work.only_prompt:
            generation = self._work.generations[index]
            row.text = generation.echo
            return self._choice(index, row.text, self._logprobs(index, (), with_prompt=True), "length")
        return self._choice(index, row.text, self._logprobs(index, row.positions, with_prompt=True), row.finish_reason)

    def chunks(self, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        """See Answers."""
        text, positions = piece.text, piece.positions
        if self._work.only_prompt:
            text, positions = self._work.generations[piece.row].echo, ()
        found = []
        if text or positions:
            found.append(
                self._choice(piece.row, text, self._logprobs(piece.row, positions, with_prompt=is_first), None)
            )
        if piece.is_last:
            found.append(self._choice(piece.row, "", None, piece.finish_reason))
        return found

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(
        self, index: int, positions: Sequence[PositionLogprobs], *, with_prompt: bool
    ) -> dict[str, Any] | None:
        """The older form: parallel lists, with the prompt's tokens first where it is echoed."""
        if not self._work.generations[0].sampling.logprobs:
            return None
        generation = self._work.generations[index]
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        prompt = generation.prompt_logprobs() if with_prompt else None
        if prompt is not None:
            first = generation.request.prompt_ids[0]
            name = _spelling(generation.tokenizer.token_bytes(first))
            self._append(found, index, name, None, None)
        for position in (*(prompt or ()), *positions):
            top = {_spelling(token.bytes_): token.logprob for token in (*position.top, position.chosen)}
            self._append(found, index, _spelling(position.chosen.bytes_), position.chosen.logprob, top)
        return found

    def _append(
        self, found: dict[str, list[Any]], index: int, token: str, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        found["tokens"].append(token)
        found["token_logprobs"].append(logprob)
        found["top_logprobs"].append(top)
        found["text_offset"].append(self._offsets[index])
        self._offsets[index] += len(token)


def _call(part: Part) -> dict[str, Any]:
    function = {"name": part.name, "arguments": part.text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _token(token: TokenLogprob) -> dict[str, Any]:
    text = token.bytes_.decode(errors="replace")
    return {"token": text, "logprob": token.logprob, "bytes": list(token.bytes_)}


def _spelling(data: bytes) -> str:
    """A token as text; part of a character as OpenAI writes it, so that two of them differ."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
