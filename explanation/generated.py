"""Answers token by token: what each word of a prompt does to each token's log probability."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from piston.core.errors import MisuseError
from piston.explanation.occlusion import Scores, Variant, attributions_of, replacement_of
from piston.explanation.result import Array, Asked, Attribution, MarkedText, Word
from piston.runtime.text.tokenizer import Tokenizer


def log_probabilities(logits: Array, token_ids: Sequence[int]) -> list[float]:
    """Of each token under the logits [tokens, vocab] that it was chosen by, in nats."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    totals = np.log(np.exp(rows).sum(axis=1))
    return [float(row[token] - total) for row, token, total in zip(rows, token_ids, totals, strict=True)]


def answer_attributions(
    asked: Asked,
    name: str,
    tokenizer: Tokenizer,
    tokens: Sequence[str],
    read: Callable[[str], list[float]],
) -> tuple[Attribution, ...]:
    """Of the whole answer, then of each of its tokens.

    Args:
        asked: the options; the prompt is the input `name`.
        name: of the option with the prompt.
        tokenizer: splits it into words.
        tokens: of the answer, for people.
        read: the log probability of each token of the answer after a prompt.
    """
    if not tokens:
        raise MisuseError("The model answers nothing; there is nothing to explain.")

    def score(texts: Sequence[Mapping[str, str]], variants: Sequence[Variant]) -> Scores:
        del variants
        return np.array([read(each[name]) for each in texts], np.float64)

    # Nothing is written in place of a word: a model that writes text has no token for what is masked.
    replacement = "" if asked.replacement is None else replacement_of(asked.replacement, tokenizer)
    names = [f"log probability of {token}" for token in tokens]
    each = attributions_of(names, {name: asked.texts[name]}, {name: tokenizer}, replacement, score)
    return (_whole(each), *each)


def _whole(each: Sequence[Attribution]) -> Attribution:
    """The sum over the tokens: of the answer's log probability."""
    (first,) = each[0].texts
    effects = np.sum([[word.effect for word in one.texts[0].words] for one in each], axis=0)
    words = tuple(Word(word.start, word.end, float(effect)) for word, effect in zip(first.words, effects, strict=True))
    text = MarkedText(first.name, first.text, words)
    return Attribution("log probability of the whole answer", sum(one.value for one in each), (text,))
