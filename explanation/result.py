"""What was asked, and what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
DIGITS = 6  # of numbers in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of `piston explain`.

    `texts` are the inputs by their options' names, such as "text" or "question". `replacement` is written in place of a
    word that is left out; None: the tokenizer's mask token, or nothing. `languages` are the codes of the source and the
    target of a translation. `like` is the explanation of another model whose answer is to be explained, too.
    """

    texts: Mapping[str, str]
    label: str | None = None
    max_tokens: int = 16
    replacement: str | None = None
    with_attention: bool = True
    languages: tuple[str, str] | None = None
    like: "Explanation | None" = None


@dataclass(frozen=True, slots=True)
class Word:
    """Characters `start` to `end` of a text; `effect` is by how much the score is lower without them."""

    start: int
    end: int
    effect: float


@dataclass(frozen=True, slots=True)
class MarkedText:
    """One input, by its option's name, with its words in order."""

    name: str
    text: str
    words: tuple[Word, ...]

    def shown(self, word: Word) -> str:
        """The word's characters."""
        return self.text[word.start : word.end]


@dataclass(frozen=True, slots=True)
class Attribution:
    """What each word does to one score: `of` names the score, `value` is that of the whole input."""

    of: str
    value: float
    texts: tuple[MarkedText, ...]


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """One layer's attention: probabilities float32 [heads, queries, keys], each row's sum is 1."""

    kind: str  # encoder, decoder, or cross: the decoder's over the source
    layer: int
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    weights: Array

    @property
    def name(self) -> str:
        """For people."""
        return f"{'decoder to source' if self.kind == 'cross' else self.kind}, layer {self.layer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One model's answer and why.

    Args:
        task: of the bundle.
        model: its name.
        scheme: how it is quantized.
        target: of the engine.
        answer: in words.
        scores: what the model gave, by name.
        attributions: one for each score that is explained.
        attention: by layer.
        difference: largest distance of an output of the graph that gives its attention out from that of the engine.
        remarks: what was left out, and why.
        fixed: what another model's explanation needs to explain the same answer.
    """

    task: str
    model: str
    scheme: str
    target: str
    answer: str
    scores: Sequence[tuple[str, float]]
    attributions: tuple[Attribution, ...] = ()
    attention: tuple[AttentionMap, ...] = ()
    difference: float | None = None
    remarks: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For --json, as docs/schemas/explain.json has it."""
        return {
            "task": self.task,
            "model": self.model,
            "scheme": self.scheme,
            "target": self.target,
            "answer": self.answer,
            "scores": {name: round(value, DIGITS) for name, value in self.scores},
            "attributions": [
                {
                    "of": each.of,
                    "value": round(each.value, DIGITS),
                    "texts": {
                        text.name: [
                            {
                                "word": text.shown(word),
                                "start": word.start,
                                "end": word.end,
                                "effect": round(word.effect, DIGITS),
                            }
                            for word in text.words
                        ]
                        for text in each.texts
                    },
                }
                for each in self.attributions
            ],
            "attention": [
                {
                    "kind": each.kind,
                    "layer": each.layer,
                    "queries": list(each.queries),
                    "keys": list(each.keys),
                    "weights": np.round(each.weights.astype(np.float64), DIGITS).tolist(),
                }
                for each in self.attention
            ],
            "attention_difference": self.difference,
            "remarks": list(self.remarks),
        }
