"""/v1/decisions of classifiers: the options of a question are labels of the model, whose probabilities it gives.

The text is read once for all questions. Instructions say nothing to a classifier: what it decides is in its labels.
"""

from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from piston.serving.decision_answers import answer_to, options_of
from piston.serving.decision_fields import DecisionsRequest, Predicate, Question
from piston.serving.decisions import evidence_of
from piston.serving.endpoint import Call
from piston.serving.errors import RequestError

if TYPE_CHECKING:
    from piston.runtime.tasks.text_classification import TextClassifier
    from piston.serving.encoders import ServedEncoder


async def decide(served: "ServedEncoder", body: DecisionsRequest, call: Call) -> ASGIApp:
    """/v1/decisions: a predicate's name, the choices' values and the levels' labels are labels of the model."""
    model: TextClassifier = served.model  # type: ignore[assignment]
    if model.problem_type == "regression":
        raise RequestError(
            f"{served.name} is a regression, which gives a text a value and decides nothing; use /classify.",
            param="model",
        )
    columns = [_columns(model, question) for question in body.questions]
    text = evidence_of(body.input)
    row = await served.encoded(call, 1, lambda: model.row(text, what="input"))
    ticket = served.ticket([row], call)

    async def answer() -> dict[str, Any]:
        import numpy as np

        (scores,) = model.scores_of(np.stack(await served.outputs(ticket))).astype(np.float64)
        answers = []
        for question, own in zip(body.questions, columns, strict=True):
            found = scores[own]
            whole = np.array([found[0], 1 - found[0]]) if isinstance(question, Predicate) else found
            answers.append(answer_to(question, whole))
        tokens = ticket.num_tokens
        return {
            "object": "decision",
            "model": served.name,
            "answers": answers,
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
            },
        }

    return call.respond(answer)


def _columns(model: "TextClassifier", question: Question) -> list[int]:
    """The place of each option among the labels; of a predicate that of its name. Raises RequestError."""
    is_predicate = isinstance(question, Predicate)
    names = [question.name] if is_predicate else [name for name, _ in options_of(question)]
    unknown = [name for name in names if name not in model.labels]
    if unknown:
        what = "The name of a predicate" if is_predicate else "Each choice and level"
        raise RequestError(
            f"{what} must be a label of {model.manifest.model.name}, and {unknown[0]!r} is none; its labels are "
            f"{', '.join(model.labels)}.",
            param="questions",
        )
    return [model.labels.index(str(name)) for name in names]
