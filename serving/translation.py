"""Translations: /translate and /languages in the shape of LibreTranslate's API, with options of beam search."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, UnsetType

from piston.core.errors import MisuseError
from piston.serving.answers import Answers
from piston.serving.beams import SearchFields, search_of
from piston.serving.endpoint import Caller
from piston.serving.errors import RequestError
from piston.serving.fields import Meta, Refused
from piston.serving.work import Work

if TYPE_CHECKING:
    from piston.runtime.tasks.text2text_generation import TextToText
    from piston.serving.tasks.text2text_generation import ServedTextToText


class TranslateRequest(SearchFields, kw_only=True):
    """/translate."""

    q: Annotated[str | list[str], Meta(description="a text or a list of texts")]
    source: Annotated[str, Meta(description="code of their language, one of /languages")]
    target: Annotated[str, Meta(description="code of the language to translate into")]
    model: Annotated[str | UnsetType, Meta(description="one of /v1/models; default: the first that translates so")] = (
        UNSET
    )
    alternatives: Annotated[
        int, Meta(ge=0, description="further translations of each text, by a search of 4 beams or num_beams")
    ] = 0
    max_tokens: Annotated[int | UnsetType, Meta(description="of a translation")] = UNSET
    truncate: Annotated[bool, Meta(description="cut ends of longer texts; else refused")] = False
    split_sentences: Annotated[bool, Meta(description="cut longer texts between sentences")] = False


REFUSED_TRANSLATION = {
    "format": Refused("markup is not kept apart from text", ("text",)),
    "api_key": Refused("send the header `Authorization: Bearer KEY`", ("",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationWork(Work):
    """The rows of a translation.

    Attributes:
        is_list: whether the texts came in a list.
        num_pieces: of each text.
    """

    is_list: bool
    num_pieces: list[int]


def translation_work(model: "TextToText", grammars: None, request: TranslateRequest, caller: Caller) -> TranslationWork:
    """Rows of texts to translate, greedily unless beams are asked for.

    Raises:
        RequestError, MisuseError, PromptTooLongError: a field is wrong, the model does not have a language, or a text
            is empty or too long.
    """
    del grammars
    began = time.perf_counter()
    texts = [request.q] if isinstance(request.q, str) else request.q
    if not texts:
        raise RequestError("q has no text; send at least one.", param="q")
    given = {} if request.max_tokens is UNSET else {"max_tokens": request.max_tokens}
    code, _, prompt = model.translation(request.source, request.target)
    pieces = [(model.split(text, code, prompt) if request.split_sentences else []) or [text] for text in texts]
    flat = [piece for found in pieces for piece in found]
    language, sampling, prompted = model.for_translation(flat, request.source, request.target, model.sampling(**given))
    generations = model.prepare(prompted, sampling, truncate=request.truncate, language=language)
    beams = search_of(request, request.alternatives + 1)
    for generation in generations:
        generation.started, generation.tokenizing = began, time.perf_counter() - began
        generation.request.deadline, generation.request.cache_salt = caller.deadline, caller.salt
        generation.request.beams = beams
    return TranslationWork(
        generations=generations,
        stream=False,
        include_usage=True,
        is_list=not isinstance(request.q, str),
        num_pieces=list(map(len, pieces)),
    )


class TranslationAnswers(Answers):
    """The answer of /translate."""

    _work: TranslationWork

    async def answer(self) -> dict[str, Any]:
        """The whole answer; pieces of one text are joined by spaces."""
        async for _ in self.pieces():
            pass
        num_answers = self._work.generations[0].request.num_answers
        rows = iter(self.rows)
        found = []  # of each text its translations, the best first
        for num_pieces in self._work.num_pieces:
            pieces = [[next(rows).text for _ in range(num_answers)] for _ in range(num_pieces)]
            found.append([" ".join(parts) for parts in zip(*pieces, strict=True)])
        best, others = [texts[0] for texts in found], [texts[1:] for texts in found]
        answer: dict[str, Any] = {"translatedText": best if self._work.is_list else best[0]}
        if num_answers > 1:
            answer["alternatives"] = others if self._work.is_list else others[0]
        return answer | {"model": self._base["model"], "usage": self.usage()}


def can_translate(served: "ServedTextToText", given: Mapping[str, Any]) -> bool:
    """Whether a bundle translates the pair of a request."""
    try:
        served.model.translation(str(given.get("source")), str(given.get("target")))
    except MisuseError:
        return False
    return True


def languages_of(models: "list[ServedTextToText]") -> list[dict[str, Any]]:
    """/languages: what the models translate from, and into what."""
    targets: dict[str, set[str]] = {}
    for served in models:
        for source, target in served.model.pairs:
            targets.setdefault(source, set()).add(target)
    return [{"code": code, "name": code, "targets": sorted(found)} for code, found in sorted(targets.items())]
