"""Token classification: attention alone; its answers are one label for each word."""

from piston.explanation.opened import Opened
from piston.explanation.result import Asked, Explanation
from piston.runtime.tasks.token_classification import TokenClassifier

TAKES = {"text": True}


def explain(opened: Opened, asked: Asked) -> Explanation:
    """The spans, and what the model attends to."""
    model: TokenClassifier = opened.model
    spans = model.tag([asked.texts["text"]])[0]
    return opened.explanation(
        ", ".join(f"{span.text} ({span.label})" for span in spans) or "no span",
        [(f"{span.text} ({span.label})", span.score) for span in spans],
        remarks=("What each word changes is not measured of token-classification: every word has its own label.",),
        **opened.attention_of(model.encoding(asked.texts["text"]), asked),
    )
