"""The labels of a checkpoint, and what its logits mean."""

from typing import Any

from piston.core.errors import CheckpointError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"
# The words of transformers.
PROBLEMS = {
    "single_label_classification": SINGLE_LABEL,
    "multi_label_classification": MULTI_LABEL,
    "regression": REGRESSION,
}


def labels_of(name: str, config: Any) -> tuple[list[str], list[str]]:
    """The label of each logit, and remarks.

    Raises:
        CheckpointError: a logit has no label.
    """
    named = dict(config.id2label or {})
    numbers = [*range(len(named))]
    if sorted(named) != numbers:
        raise CheckpointError(
            f"id2label of {name} names {len(named)} labels with the numbers {', '.join(map(str, sorted(named)))}; they "
            f"must be 0 to {len(named) - 1}, one for each logit. Correct config.json."
        )
    labels = [str(named[number]) for number in numbers]
    remarks = []
    if len(labels) > 1 and labels == [f"LABEL_{number}" for number in numbers]:
        remarks.append("the checkpoint does not name its labels: they are LABEL_0 and so on (id2label in config.json).")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise CheckpointError(f"id2label of {name} names the label {twice[0]!r} twice; correct config.json.")
    return labels, remarks


def problem_of(name: str, config: Any, num_labels: int) -> str:
    """What logits mean, as transformers' pipeline decides: softmax, a sigmoid of each, or plain numbers.

    Raises:
        CheckpointError: the config has a problem type that transformers does not know.
    """
    given = getattr(config, "problem_type", None)
    if given is None:
        return MULTI_LABEL if num_labels == 1 else SINGLE_LABEL
    if given not in PROBLEMS:
        raise CheckpointError(f"problem_type of {name} is {given!r}; it must be one of {', '.join(PROBLEMS)}.")
    return PROBLEMS[given]
