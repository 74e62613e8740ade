"""Beam search as requests ask for it: in vLLM's fields, and under endpoints without such in those of transformers."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from piston.runtime.sampling.beam_params import BeamParams, EarlyStopping
from piston.serving.errors import RequestError
from piston.serving.fields import Meta
from piston.serving.generation_fields import Options

DEFAULT_BEAMS = 4  # where a search returns one answer
# What the checkpoint's authors recommend for samples; a search takes no samples.
OF_SAMPLES = frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"})

WITHOUT_SAMPLES = {"top_k": (0, -1), "top_p": (1,), "min_p": (0,), "typical_p": (1,)}  # values that ask for nothing


class SearchFields(msgspec.Struct, kw_only=True):
    """Fields of endpoints that translate or transcribe."""

    num_beams: Annotated[int | UnsetType, Meta(description="beams of a search")] = UNSET
    length_penalty: Annotated[float | UnsetType, Meta(description="of a search; above 0 for longer answers")] = UNSET
    early_stopping: Annotated[EarlyStopping | UnsetType, Meta(description='of a search; true, false or "never"')] = (
        UNSET
    )


def search_of(request: SearchFields, num_answers: int = 1) -> BeamParams | None:
    """The search that such a request asks for, if it does, or needs for several answers.

    Raises:
        RequestError: an option of a search without one.
        MisuseError: a value is out of range.
    """
    names = ("num_beams", "length_penalty", "early_stopping")
    options = {name: getattr(request, name) for name in names if getattr(request, name) is not UNSET}
    if num_answers == 1 and "num_beams" not in options:
        if options:
            name = next(iter(options))
            raise RequestError(f"{name} is for beam search; send num_beams, or leave it out.", param=name)
        return None
    return BeamParams(**{"num_beams": max(DEFAULT_BEAMS, num_answers)} | options, num_return_sequences=num_answers)


def beams_of(request: Options) -> BeamParams | None:
    """The search that a request asks for, if it does.

    Raises:
        RequestError: a field is without effect, or the answer is to be streamed.
        MisuseError: a value is out of range.
    """
    num_answers = _given(request.n, 1)
    if request.use_beam_search is not True:
        for name, harmless in (("best_of", num_answers), ("length_penalty", 1), ("early_stopping", False)):
            if _given(getattr(request, name), harmless) != harmless:
                raise RequestError(
                    f"{name} is not supported without use_beam_search, and all n answers are returned; leave it out, "
                    "or send use_beam_search.",
                    param=name,
                    code="unsupported_parameter",
                )
        return None
    if request.stream:
        raise RequestError(
            "stream is not supported with use_beam_search: no text is certain before the end; leave one of them out.",
            param="stream",
            code="unsupported_parameter",
        )
    for name, harmless in WITHOUT_SAMPLES.items():
        if (value := _given(getattr(request, name), None)) not in (None, *harmless):
            raise RequestError(
                f"{name} is {value}, and a beam search takes no samples; leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    num_beams = _given(request.best_of, num_answers if num_answers > 1 else DEFAULT_BEAMS)
    if num_beams < num_answers:
        raise RequestError(f"best_of is {num_beams}; it must be at least n, which is {num_answers}.", param="best_of")
    return BeamParams(
        num_beams=num_beams,
        num_return_sequences=num_answers,
        length_penalty=_given(request.length_penalty, 1.0),
        early_stopping=_given(request.early_stopping, False),
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is UNSET else value
