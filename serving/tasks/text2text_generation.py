"""Encoder-decoders from text to text: completions, whose prompt is the text that is answered, and translations."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from piston.runtime.sampling.params import SamplingParams
from piston.serving.answers import CompletionAnswers
from piston.serving.endpoint import Caller, Endpoint
from piston.serving.errors import RequestError
from piston.serving.generation_fields import REFUSED_COMPLETION, CompletionRequest
from piston.serving.generation_thread import GenerationThread
from piston.serving.metrics import GenerationMetrics, Metrics
from piston.serving.served import Served
from piston.serving.settings import Settings
from piston.serving.structured import grammar_of
from piston.serving.tasks.text_generation import generate
from piston.serving.translation import (
    REFUSED_TRANSLATION,
    TranslateRequest,
    TranslationAnswers,
    can_translate,
    languages_of,
    translation_work,
)
from piston.serving.work import Work, options_of, work_of

if TYPE_CHECKING:
    from piston.runtime.tasks.text2text_generation import TextToText


class ServedTextToText(Served):
    """An encoder-decoder behind HTTP."""

    model: "TextToText"
    thread: GenerationThread
    grammars = None

    def __init__(self, name: str, model: "TextToText", metrics: Metrics, settings: Settings) -> None:
        thread = GenerationThread(
            model,
            GenerationMetrics(metrics, name),
            max_open=self.max_open(model.engine.cache.num_slots, settings),
            max_queue_tokens=settings.max_queue_tokens,
            max_stall=settings.max_stall,
        )
        super().__init__(name, model, thread)

    @property
    def max_model_len(self) -> int:
        """Tokens of a text."""
        return self.model.engine.max_source

    @property
    def described(self) -> str:
        """See Served."""
        engine = self.model.engine
        return (
            f"{self.name}: {engine.cache.num_slots} rows, texts of {engine.max_source:,} tokens and answers of "
            f"{engine.cache.capacity:,}; engine {self.model.target}"
        )


def text_work(model: "TextToText", grammars: None, request: CompletionRequest, caller: Caller) -> Work:
    """Rows of texts; greedy unless the request or the checkpoint says otherwise.

    Raises:
        RequestError, MisuseError, PromptTooLongError: a field is wrong, or a text is empty or too long.
    """
    del grammars
    began = time.perf_counter()
    if grammar_of(request) is not None:
        raise RequestError("structured output is for language models; leave it out.")
    texts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError("prompt must be a text or a list of texts, at least one.", param="prompt")
    options = options_of(model, request, default_temperature=None) | {"max_tokens": model.sampling().max_tokens}
    for name in ("max_tokens", "echo"):
        if getattr(request, name) is not UNSET:
            options[name] = getattr(request, name)
    if request.logprobs is not UNSET:
        options |= {"logprobs": True, "top_logprobs": request.logprobs}
    return work_of(model.prepare(texts, SamplingParams.from_mapping(options)), request, caller, began)


serve = ServedTextToText
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/completions": Endpoint(CompletionRequest, partial(generate, text_work, CompletionAnswers), REFUSED_COMPLETION),
    "/translate": Endpoint(
        TranslateRequest, partial(generate, translation_work, TranslationAnswers), REFUSED_TRANSLATION, can_translate
    ),
}
READS: Mapping[str, Callable[[Any], Any]] = {"/languages": languages_of}
