"""Text classification and regression: a bundle becomes a TextClassifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.errors import BundleCorruptError, MisuseError
from piston.runtime.encoder import EncoderModel, labels_in, open_encoder
from piston.runtime.scores import sigmoid, softmax

PROBLEMS = ("single_label", "multi_label", "regression")
Texts = Sequence[str | tuple[str, str]]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label with its probability, or with its value where the model is a regression."""

    label: str
    score: float


class TextClassifier(EncoderModel):
    """A loaded bundle that gives the labels of texts; see EncoderModel."""

    TASK = "text-classification"

    def __init__(self, *parts: Any, **sizes: Any) -> None:
        super().__init__(*parts, **sizes)
        self.labels = labels_in(self.manifest, self.width)  # in the order of the logits
        self.problem_type = str(self.manifest.settings.get("problem_type"))  # one of PROBLEMS
        if self.problem_type not in PROBLEMS:
            raise BundleCorruptError(
                f"The manifest of {self.manifest.model.name} states problem_type {self.problem_type!r}; make it again."
            )

    @cached_property
    def thresholds(self) -> Mapping[str, float]:
        """From which probability a text has a label; of models that give a text several. Kept in the bundle."""
        return {label: float(bound) for label, bound in (self.manifest.settings.get("thresholds") or {}).items()}

    @checked_arguments
    def classify(self, texts: Texts, *, top_k: int | None = None, truncate: bool = False) -> list[list[LabelScore]]:
        """The labels of each text with their scores, best first.

        Scores are probabilities: of all labels together where a text has one, of each label by itself where it may
        have several. Those of a regression are its values.

        Args:
            texts: none of them empty; a tuple is two texts that are read together.
            top_k: keep the best so many labels.
            truncate: cut texts of more than `max_length` tokens; without it they are refused.

        Raises:
            MisuseError: an argument is of another type, or a text is empty or is no Unicode.
            PromptTooLongError: a text is too long.
            EngineError: the backend fails.
        """
        if top_k is not None and top_k < 1:
            raise MisuseError(f"top_k is {top_k}; it must be 1 or more.")
        return [self.ordered(scores, top_k) for scores in self.scores(texts, truncate=truncate)]

    def ordered(self, scores: NDArray[np.float32], top_k: int | None = None) -> list[LabelScore]:
        """Scores [labels] of one text with their labels, best first."""
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [LabelScore(self.labels[index], float(scores[index])) for index in order]

    def scores(self, texts: Texts, *, truncate: bool = False) -> NDArray[np.float32]:
        """The scores of `classify` as an array, float32 [texts, labels], in the order of `labels`."""
        return self.scores_of(self.logits(texts, truncate=truncate))

    @checked_arguments
    def logits(self, texts: Texts, *, truncate: bool = False) -> NDArray[np.float32]:
        """What the graph gives, float32 [texts, labels]."""
        found = self.each(
            texts,
            lambda index, text: self.row(
                *((text,) if isinstance(text, str) else text),
                what=f"Text {index}",
                max_tokens=self.max_length if truncate else None,
            ),
            lambda _index, _row, output: output.copy(),
        )
        return np.array(found, np.float32).reshape(len(texts), self.width)

    def scores_of(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [texts, labels] to scores, as transformers' pipeline does it."""
        if self.problem_type == "regression":
            return logits
        return softmax(logits) if self.problem_type == "single_label" else sigmoid(logits)


MODEL = TextClassifier
open_model = partial(open_encoder, TextClassifier)
