"""What a question of /v1/decisions is answered with, whoever decides: a language model or a classifier."""

from typing import TYPE_CHECKING, Any

from piston.core.json_text import json_text
from piston.serving.decision_fields import ChoiceQuestion, Predicate, Question
from piston.serving.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def options_of(question: Question) -> list[tuple[str, str | None]]:
    """Name and description of each option; raises RequestError where one is there twice."""
    if isinstance(question, Predicate):
        return [("Yes", None), ("No", None)]
    if isinstance(question, ChoiceQuestion):
        names = [
            choice.value if isinstance(choice.value, str) else json_text(choice.value) for choice in question.choices
        ]
        num_different = len({(type(choice.value), choice.value) for choice in question.choices})
        described = [choice.description for choice in question.choices]
    else:
        names = [level.label for level in question.levels]
        num_different = len(set(names))
        described = [level.description for level in question.levels]
    if num_different < len(names):
        raise RequestError("The choices or levels of a question must differ from each other.", param="questions")
    return list(zip(names, described, strict=True))


def answer_to(question: Question, whole: "NDArray[np.float64]") -> dict[str, Any]:
    """As openai-python reads it, from the probability of each option, which together may be less than 1, or more."""
    shares = (whole / whole.sum()).tolist() if whole.sum() else [1 / len(whole)] * len(whole)
    best = int(whole.argmax())
    named: dict[str, Any] = {"name": question.name}
    if isinstance(question, Predicate):
        return named | {"type": "predicate", "probability": shares[0]}
    named["confidence"] = float(whole[best])
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        listed = [{"value": value, "probability": share} for value, share in zip(values, shares, strict=True)]
        return named | {"type": "choice", "choice": values[best], "probabilities": listed}
    levels = [
        {"label": level.label, "value": value, "probability": share}
        for value, (level, share) in enumerate(zip(question.levels, shares, strict=True))
    ]
    score = sum(value * share for value, share in enumerate(shares))
    return named | {"type": "score", "score": score, "probabilities": levels}
