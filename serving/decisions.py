"""/v1/decisions: a language model chooses among given answers, and says the probability of each.

Each question is one prompt whose options carry letters, and the probabilities are those of the letters as the first
token of the answer: one prefill, no text is generated. The input comes first in every prompt of a request, so that all
questions but the first find it among the kept prefixes.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from starlette.types import ASGIApp

from piston.core.json_text import json_text
from piston.runtime.generate.generation import Generation, prepare
from piston.runtime.sampling.params import SamplingParams
from piston.serving.decision_answers import answer_to, options_of
from piston.serving.decision_fields import (
    CustomCall,
    DecisionsRequest,
    FunctionCall,
    InputJson,
    Instructions,
    Item,
    Message,
    Question,
    Refusal,
)
from piston.serving.endpoint import Call, Caller
from piston.serving.errors import DeadlineError, QueueFullError, RequestError
from piston.serving.generation_thread import GenerationThread, Ticket
from piston.serving.work import ends_in_reasoning

if TYPE_CHECKING:
    from piston.runtime.model import LanguageModel

LABELS = [
    *ascii_uppercase,
    *ascii_lowercase,
    *(first + second for first in ascii_uppercase for second in ascii_uppercase),
]
AGAIN = 0.05  # seconds after which the next questions of a request ask for a place in the queue again


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: its prompt as a row to run, and the token ids of each option's letter."""

    question: Question
    generation: Generation
    labels: list[tuple[int, ...]]

    def answer(self) -> dict[str, Any]:
        """As openai-python reads it, once the row has run."""
        (position,) = self.generation.logprobs
        of_token = {token.token_id: np.exp(token.logprob) for token in position.top}
        whole = np.array([sum(of_token[token_id] for token_id in ids) for ids in self.labels])
        return answer_to(self.question, whole)


async def decide(served: Any, body: DecisionsRequest, call: Call) -> ASGIApp:
    """/v1/decisions."""
    served.thread.check_room()
    asked = await call.in_worker(lambda: _asked(served.model, body, call.caller))

    async def answer() -> dict[str, Any]:
        # Not more rows at once than the engine holds: the rest of the queue is for others.
        num_rows = served.thread.limits.num_rows
        for first in range(0, len(asked), num_rows):
            rows = [item.generation for item in asked[first : first + num_rows]]
            await _run(served.thread, Ticket(rows, call.caller.request_id), call.caller, is_first=first == 0)
        return {
            "object": "decision",
            "model": served.name,
            "answers": [item.answer() for item in asked],
            "usage": _usage(asked),
        }

    return call.respond(answer)


async def _run(thread: GenerationThread, ticket: Ticket, caller: Caller, *, is_first: bool) -> None:
    """Run rows to their end. Only the first ones of a request are refused where too much waits; later ones wait."""
    try:
        while True:
            try:
                thread.submit(ticket)
                break
            except QueueFullError:
                if is_first:
                    raise
                if caller.deadline is not None and time.monotonic() > caller.deadline:
                    raise DeadlineError from None
                await asyncio.sleep(AGAIN)
        num_left = ticket.num_rows
        while num_left:
            piece = await ticket.pieces.get()
            if piece.error is not None:
                raise piece.error
            num_left -= piece.is_last
    finally:
        ticket.cancel()


def _asked(model: "LanguageModel", body: DecisionsRequest, caller: Caller) -> list[Asked]:
    """The rows of a request; errors as of `chat_work`, or the tokenizer has too few letters."""
    evidence = evidence_of(body.input)
    most = max(len(options_of(question)) for question in body.questions)
    letters = _letters(model, most)
    salt = f"{caller.salt}:{body.cache_salt or ''}"
    asked = []
    for question in body.questions:
        labels = [ids for _, ids in letters[: len(options_of(question))]]
        listed = tuple(token_id for ids in labels for token_id in ids)
        sampling = SamplingParams(max_tokens=1, logprobs=True, logprob_token_ids=listed)
        prompt = _prompt(model, f"{evidence}\n\n{_text(question, [letter for letter, _ in letters])}")
        (generation,) = prepare([prompt], sampling, model.tokenizer, model.manifest.tokenizer.eos_token_ids)
        generation.request.deadline, generation.request.cache_salt = caller.deadline, salt
        asked.append(Asked(question, generation, labels))
    return asked


def _prompt(model: "LanguageModel", text: str) -> list[int]:
    """Token ids up to the letter. Without a chat template the text itself asks for it."""
    if model.template is None:
        return model.encode(f"{text}\nAnswer:")
    prompt = model.render([{"role": "user", "content": text}], enable_thinking=False, add_generation_prompt=True)
    if ends_in_reasoning(model, prompt):
        raise RequestError(
            "The chat template of this model begins every answer with reasoning, so its first token is no choice; "
            "use a model that can answer at once."
        )
    return prompt


def _letters(model: "LanguageModel", count: int) -> list[tuple[str, tuple[int, ...]]]:
    """Letters of one token each, and that token: alone, and behind a space, for templates differ in that."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for label in LABELS:
        spelt = [model.tokenizer.encode_inside(text) for text in (label, f" {label}")]
        ids = tuple(dict.fromkeys(ids[0] for ids in spelt if len(ids) == 1))
        if ids and not any(set(ids) & set(other) for _, other in found):
            found.append((label, ids))
        if len(found) == count:
            return found
    raise RequestError(
        f"A question has {count} options, but this model's tokenizer has {len(found)} letters of one token; ask with "
        "fewer.",
        param="questions",
    )


def _text(question: Question, letters: Sequence[str]) -> str:
    lines = [_joined(question.instructions), ""]
    for letter, (name, described) in zip(letters, options_of(question), strict=False):
        lines.append(f"{letter}. {name}" + (f": {described}" if described else ""))
    return "\n".join([*lines, "", "Answer with the letter of one option alone."])


def evidence_of(given: str | list[Any]) -> str:
    """What is judged, as one text: a conversation is written out, with who said what."""
    if isinstance(given, str):
        return given
    items = [_item(item, n) for n, item in enumerate(given)]
    calls = {item.call_id for item in items if isinstance(item, FunctionCall | CustomCall)}
    if all(isinstance(item, Message) and item.role == "user" for item in items):
        return "\n\n".join(_joined(item.content) for item in items if isinstance(item, Message))
    return "\n\n".join(_written(items, calls))


def _item(given: Any, n: int) -> Item:
    try:
        item: Item = msgspec.convert({"type": "message"} | given if isinstance(given, dict) else given, Item)
    except msgspec.ValidationError as problem:
        raise RequestError(f"input[{n}]: {problem}.", param=f"input[{n}]") from None
    return item


def _written(items: Iterable[Item], calls: set[str]) -> Iterator[str]:
    for n, item in enumerate(items):
        if isinstance(item, Message):
            yield f"{item.role}: {_joined(item.content)}"
        elif isinstance(item, FunctionCall | CustomCall):
            yield f"call of {item.name}: {item.arguments if isinstance(item, FunctionCall) else item.input}"
        elif item.call_id not in calls:
            raise RequestError(
                f"input[{n}] is the output of the call {item.call_id!r}, which is not there.", param=f"input[{n}]"
            )
        else:
            yield f"output: {_joined(item.output)}"


def _joined(content: "Instructions | list[Any]") -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        json_text(part.data, ensure_ascii=False)
        if isinstance(part, InputJson)
        else part.refusal
        if isinstance(part, Refusal)
        else part.text
        for part in content
    )


def _usage(asked: Sequence[Asked]) -> dict[str, Any]:
    requests = [item.generation.request for item in asked]
    num_input = sum(len(request.prompt_ids) for request in requests)
    num_cached = sum(request.num_cached for request in requests)
    return {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": num_input - num_cached},
        "output_tokens": len(requests),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_input + len(requests),
    }
