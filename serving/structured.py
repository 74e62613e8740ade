"""Structured output: what an answer must be becomes a grammar, and that a mask over the vocabulary (llguidance)."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llguidance
import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.core.json_text import json_text
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.processors import Logits
from piston.runtime.sampling.sampler import Constraint
from piston.serving.endpoint import Call, Result
from piston.serving.errors import RequestError
from piston.serving.generation_fields import ChatRequest, Options

MAX_GRAMMAR = 200_000  # characters
COMPILE_SECONDS = 10.0  # that a request waits for its grammar
NUM_KEPT = 32  # compiled grammars
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
NEEDS = {"json": "a JSON schema", "json_object": "true", "choice": "a list of texts"}
TEXTS = ("regex", "grammar")
KINDS = (*NEEDS, *TEXTS)


class Grammars:
    """Compiles grammars for one model; the latest are kept. For several threads."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> "Grammar":
        """A grammar in llguidance's form, ready to be followed.

        Raises:
            RequestError: it is too large or too complex, is wrong, or asks for what cannot be enforced.
        """
        if len(grammar) > MAX_GRAMMAR:
            raise RequestError(f"The grammar has {len(grammar):,} characters; at most {MAX_GRAMMAR:,} are compiled.")
        with self._lock:
            if (kept := self._kept.get(grammar)) is not None:
                self._kept.move_to_end(grammar)
                return Grammar(kept)
            tokenizer = self._opened()
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
        problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if problems:
            raise RequestError(f"The answer cannot be held to this: {_one_line(problems[0])}.")
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
        return Grammar(matcher)

    def _opened(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            ends = list(self._model.manifest.tokenizer.eos_token_ids)
            if not ends:
                raise RequestError("Structured output needs an end token, and this model has none.")
            size = self._model.engine.vocab_size
            self._tokenizer = llguidance.LLTokenizer(self._model.tokenizer.to_json(), n_vocab=size, eos_token=ends)
        return self._tokenizer


class Grammar:
    """A compiled grammar; `begin` gives a fresh state for each answer."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def begin(self, after: int | None = None) -> Constraint:
        """What one answer must follow, from its first token on or, with `after`, behind that token."""
        state = _Following(self._matcher.deep_copy())
        return state if after is None else _Behind(state, after)


class _Following(Constraint):
    """From the first token on."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, logits: Logits) -> NDArray[np.bool_]:
        """See Constraint."""
        vocab_size = logits.size
        bits = np.empty((vocab_size + 31) // 32, np.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()
        return np.unpackbits(bits.view(np.uint8), bitorder="little", count=vocab_size).view(np.bool_)

    def accept(self, token_id: int) -> None:
        """See Constraint."""
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> Sequence[int]:
        """See Constraint: the canonical tokens of text that must come."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def _check(self) -> None:
        if self._matcher.is_error():
            raise MisuseError(f"The grammar cannot be followed further: {_one_line(self._matcher.get_error())}.")


class _Behind(Constraint):
    """From behind a token on."""

    def __init__(self, state: _Following, token_id: int) -> None:
        self._state, self._token_id, self._has_begun = state, token_id, False

    def allowed(self, logits: Logits) -> NDArray[np.bool_]:
        """See Constraint."""
        return self._state.allowed(logits) if self._has_begun else np.ones(logits.size, np.bool_)

    def accept(self, token_id: int) -> None:
        """See Constraint."""
        if self._has_begun:
            self._state.accept(token_id)
        self._has_begun = self._has_begun or token_id == self._token_id

    def forced(self) -> Sequence[int]:
        """See Constraint."""
        return self._state.forced() if self._has_begun else ()


def grammar_of(request: Options) -> str | None:
    """The grammar that a request asks for, in llguidance's form; None where an answer is free.

    Raises:
        RequestError: it asks for two at once, or for a kind that there is not.
    """
    wanted: list[tuple[str, str, Any]] = []
    if isinstance(request, ChatRequest) and request.response_format is not UNSET:
        wanted += _of_format(request.response_format)
    if request.structured_outputs is not UNSET:
        for kind, value in request.structured_outputs.items():
            if value is not None:
                wanted.append(("structured_outputs", kind, value))
    for name, kind in GUIDED.items():
        if (value := getattr(request, name)) is not UNSET:
            wanted.append((name, kind, value))
    if not wanted:
        return None
    if len(wanted) > 1:
        named = " and ".join(f"{name} ({kind})" for name, kind, _ in wanted[:2])
        raise RequestError(f"{named} both constrain the answer; send one of them.", param=wanted[1][0])
    return _grammar(*wanted[0])


def may_need_grammar(request: msgspec.Struct) -> bool:
    """Whether preparing this request may compile a grammar."""
    names = ("structured_outputs", "response_format", "text", "tools", *GUIDED)
    return any(getattr(request, name, UNSET) is not UNSET for name in names)


async def in_compiler(call: Call, work: Callable[[], Result]) -> Result:
    """The result of `work` on the thread for grammars; raises RequestError where it takes too long."""
    try:
        future = asyncio.get_running_loop().run_in_executor(call.compilers, work)
        return await asyncio.wait_for(future, COMPILE_SECONDS)
    except TimeoutError:
        raise RequestError(
            f"The grammar was not compiled within {COMPILE_SECONDS:g} s; send a simpler one, or try again later."
        ) from None


def json_grammar(schema: Mapping[str, Any] | str, param: str) -> str:
    """The grammar of a JSON schema; what in it cannot be enforced is refused when it is compiled."""
    try:
        text = schema if isinstance(schema, str) else json_text(schema)
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides={"lenient": False})
    except ValueError as problem:
        raise RequestError(f"{param} is no JSON schema: {_one_line(str(problem))}.", param=param) from None


def _of_format(wanted: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    kind = wanted.get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        return [("response_format", "json_object", True)]
    described = wanted.get("json_schema")
    if kind != "json_schema" or not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise RequestError(
            "response_format must have the type text, json_object, or json_schema with a json_schema.schema.",
            param="response_format",
        )
    return [("response_format", "json", described["schema"])]


def _grammar(name: str, kind: str, value: Any) -> str:
    def needs(described: str) -> RequestError:
        return RequestError(f"{name} ({kind}) must be {described}.", param=name)

    if kind == "json_object" and value is True:
        return json_grammar({"type": "object"}, name)
    if kind == "json" and isinstance(value, Mapping | str):
        return json_grammar(value, name)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise needs(NEEDS[kind])
        return llguidance.grammar_from("choice", json_text(value))
    if kind not in KINDS:
        raise RequestError(f"{name} has no kind {kind!r}; there are {', '.join(KINDS)}.", param=name)
    if kind not in TEXTS or not isinstance(value, str) or not value:
        raise needs(NEEDS.get(kind, "a text"))
    try:
        return llguidance.grammar_from("regex" if kind == "regex" else "grammar", value)
    except Exception as problem:  # noqa: BLE001 - the translation of other grammars raises whatever it meets
        raise RequestError(f"{name} is no grammar: {_one_line(str(problem))}.", param=name) from None


def _limits() -> llguidance.LLParserLimits:
    """A schema of 1,900 properties compiles in a second; llguidance's own limit would allow minutes."""
    return llguidance.LLParserLimits(max_lexer_states=50_000, max_grammar_size=20_000, verbose_errors=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".") or "unknown"
