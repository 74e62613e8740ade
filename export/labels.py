"""The labels of a checkpoint, and what its logits mean."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from piston.checkpoint.config_checks import check_written_labels
from piston.core.errors import CheckpointError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"
# The words of transformers.
PROBLEMS = {
    "single_label_classification": SINGLE_LABEL,
    "multi_label_classification": MULTI_LABEL,
    "regression": REGRESSION,
}


NUMBERED = re.compile(r"LABEL_\d+")  # what transformers names labels without a name


def labels_of(name: str, config: Any, written: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The label of each logit, and remarks; `written` is config.json before transformers parses it.

    Raises:
        CheckpointError: a logit has no label, a label no name or that of another, or transformers drops the names.
    """
    check_written_labels(name, written)
    named = dict(config.id2label or {})
    numbers = [*range(len(named))]
    if missing := sorted({*numbers} - {*named}):
        raise CheckpointError(
            f"id2label of {name} names {len(named)} labels, and none has the number {missing[0]}; they must be 0 to "
            f"{len(named) - 1}, one for each logit. Correct config.json."
        )
    labels = [_name_of(name, number, named[number]) for number in numbers]
    stated = [str(label) for label in (written.get("id2label") or {}).values()]
    if len(stated) != len(labels) and not _is_numbered(stated):
        raise CheckpointError(
            f"id2label of {name} names {len(stated)} labels, but num_labels says {len(labels)}, and transformers then "
            "drops the names; correct config.json."
        )
    remarks = []
    if len(labels) > 1 and _is_numbered(labels):
        remarks.append("the checkpoint does not name its labels: they are LABEL_0 and so on (id2label in config.json).")
    others = written.get("label2id") or {}
    if not _is_numbered([*others]) and others != {label: number for number, label in enumerate(labels)}:
        remarks.append("label2id in config.json contradicts id2label, from which labels are taken, as in transformers.")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise CheckpointError(f"id2label of {name} names the label {twice[0]!r} twice; correct config.json.")
    return labels, remarks


def _name_of(name: str, number: int, label: Any) -> str:
    if not isinstance(label, str | int) or not str(label).strip():
        raise CheckpointError(f"id2label of {name} names label {number} {label!r:.40}; it must be a text. Correct it.")
    return str(label)


def _is_numbered(labels: Sequence[str]) -> bool:
    """Whether labels have no names of their own; true of none."""
    return all(map(NUMBERED.fullmatch, labels))


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
