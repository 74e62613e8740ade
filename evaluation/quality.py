"""How right answers are: accuracy, F1, exact match, rank correlation, nDCG; functions of predictions and truth."""

import re
import string
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from piston.core.gates import Metric

Entity = tuple[str, int, int]  # type, first word, last word
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def share(name: str, described: str) -> Metric:
    """A figure from 0 to 1 that labelled data gives; a signed percentage bounds its change from the float model's."""
    return Metric(name=name, described=described, unit="share", is_better_high=True, percent_of="reference")


ACCURACY = share("accuracy", "the accuracy")
F1 = share("f1", "the F1 score")
EXACT_MATCH = share("exact_match", "the share of exact answers")
SPEARMAN = share("spearman", "the rank correlation with the labels")
NDCG = share("ndcg", "the nDCG of the first 10")


def accuracy(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """The share of equal ones."""
    return sum(left == right for left, right in zip(found, wanted, strict=True)) / len(wanted)


def macro_f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """The mean of the F1 of each label that occurs on either side."""
    labels = sorted({*found, *wanted}, key=str)
    pairs = [*zip(found, wanted, strict=True)]
    scores = []
    for label in labels:
        hits = sum(left == right == label for left, right in pairs)
        scores.append(_f1(hits, sum(left == label for left, _ in pairs), sum(right == label for _, right in pairs)))
    return float(np.mean(scores))


def micro_f1(found: Sequence[Collection[Hashable]], wanted: Sequence[Collection[Hashable]]) -> float:
    """F1 over all items of sets that belong together, such as the labels or the entities of each text."""
    hits = sum(len({*left} & {*right}) for left, right in zip(found, wanted, strict=True))
    return _f1(hits, sum(len({*left}) for left in found), sum(len({*right}) for right in wanted))


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that B- and I- tags of words make, as CoNLL's evaluation reads them.

    An entity begins with B-, or with I- behind another type or O; a tag without a prefix continues its own type.
    """
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        kind = tag[2:] if tag[:2] in {"B-", "I-"} else tag
        goes_on = bool(found) and found[-1][0] == kind and found[-1][2] == place - 1 and not tag.startswith("B-")
        if goes_on:
            found[-1] = (kind, found[-1][1], place)
        else:
            found.append((kind, place, place))
    return found


def normalized(answer: str) -> str:
    """Lower case without punctuation, English articles and repeated spaces, as SQuAD's evaluation compares answers."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_scores(found: str, wanted: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of the words, the best over all right answers; SQuAD's evaluation (Rajpurkar et al., 2018).

    No right answer means that the empty one is right.
    """
    return max((_exact(found, answer), _word_f1(found, answer)) for answer in wanted or [""])


def spearman(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. 0 where one side is constant."""
    left, right = ranks(scores), ranks(labels)
    return float(np.corrcoef(left, right)[0, 1]) if left.std() and right.std() else 0.0


def ndcg(scores: Sequence[float], gains: Sequence[float], top: int = 10) -> float:
    """NDCG of the first `top` documents by score, with linear gains as in trec_eval; 1 where no document has a gain."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")[:top]
    ideal = np.sort(np.asarray(gains, np.float64))[::-1][:top]
    weights = 1 / np.log2(np.arange(len(order)) + 2)
    best = float(ideal @ weights)
    return float(np.asarray(gains, np.float64)[order] @ weights) / best if best else 1.0


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """From 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], np.float64)


def _f1(hits: int, num_found: int, num_wanted: int) -> float:
    return 2 * hits / (num_found + num_wanted) if num_found + num_wanted else 1.0


def _exact(found: str, wanted: str) -> float:
    return float(normalized(found) == normalized(wanted))


def _word_f1(found: str, wanted: str) -> float:
    left, right = normalized(found).split(), normalized(wanted).split()
    if not left or not right:
        return float(left == right)
    return _f1(sum((Counter(left) & Counter(right)).values()), len(left), len(right))
