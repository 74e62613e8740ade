"""Logits processors: arithmetic on one row of logits. The random generator is passed in.

`logits` is always float32 of shape (vocab,) and never modified. The result is a new array of the same shape in which
excluded tokens are -inf. Token ids are int64 arrays. Names, formulas and order are those of transformers' `generate`
(5.23), so that the same options give the same distribution:

    1. logit_bias, repetition_penalty, frequency_penalty, presence_penalty     shift tokens
    2. no_repeat_ngram, bad_words, suppress, min_tokens, force, allow          forbid tokens
    3. temperature, top_k, top_p, min_p, typical_p (`warp`; skipped if greedy) shape what is left

transformers has no frequency and presence penalty: they use OpenAI's formula, at vLLM's place in the order.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import EngineError, MisuseError
from piston.runtime.sampling.params import SamplingParams

Logits = NDArray[np.float32]
TokenIds = NDArray[np.int64]


def pick(logits: Logits, sampling: SamplingParams, rng: np.random.Generator) -> int:
    """Choose a token: the likeliest if greedy, else drawn from what `warp` leaves of `logits`.

    Raises:
        EngineError: the logits hold NaN or infinity, or exclude every token.
    """
    token_id = likeliest(logits)
    return token_id if sampling.is_greedy else draw(warp(logits, sampling), rng)


def likeliest(logits: Logits) -> int:
    """Index of the highest logit, the lowest index among equals.

    Raises:
        EngineError: it is not finite; argmax returns NaN if there is any, so this finds every NaN.
    """
    assert logits.ndim == 1
    token_id = int(logits.argmax())
    if not np.isfinite(logits[token_id]):
        raise EngineError(
            f"The highest of {logits.size:,} logits is {logits[token_id]} (token {token_id}), so no token can be "
            "picked: the engine's arithmetic failed; use a bundle of higher precision."
        )
    return token_id


def warp(logits: Logits, sampling: SamplingParams) -> Logits:
    """Apply the options that shape a distribution to be sampled from: temperature (above 0), then the filters."""
    warped = temperature(logits, sampling.temperature)
    if sampling.top_k > 0:
        warped = top_k(warped, sampling.top_k)
    if sampling.top_p < 1:
        warped = top_p(warped, sampling.top_p)
    if sampling.min_p > 0:
        warped = min_p(warped, sampling.min_p)
    if sampling.typical_p < 1:
        warped = typical_p(warped, sampling.typical_p)
    return warped


def draw(logits: Logits, rng: np.random.Generator) -> int:
    """Draw a token from softmax(logits) by inverting its distribution function, at the cost of one uniform number.

    One number per token, independent of the options, makes a row's text depend on its seed alone.
    """
    left = _left(logits)
    cumulative = np.exp(logits[left].astype(np.float64) - float(logits.max())).cumsum()
    # A uniform is at most 1 - 2**-53, so `point` stays below the last sum even after rounding; and side="right"
    # steps over tokens whose probability underflowed to 0.
    point = rng.random() * cumulative[-1]
    return int(left[cumulative.searchsorted(point, side="right")])


def logprobs(
    logits: Logits, token_id: int, num_top: int, token_ids: Sequence[int] = ()
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural log of the probability of `token_id`, and of the `num_top` likeliest tokens as (id, logprob), best first.

    Tokens of probability 0 are not listed; equals are listed by id. `token_ids` are listed after them, in their order.

    Raises:
        MisuseError: one of them is not a token of the model.
    """
    left = _left(logits)
    shifted = logits[left].astype(np.float64) - float(logits.max())
    log_total = float(logits.max()) + float(np.log(np.exp(shifted).sum()))
    best = left[logits[left] >= _kth_largest(logits, num_top)] if num_top else left[:0]
    best = best[np.argsort(-logits[best], kind="stable")][:num_top]
    if wrong := [item for item in token_ids if item >= logits.size]:
        raise MisuseError(f"logprob_token_ids names token {wrong[0]}; the model's tokens are 0 to {logits.size - 1}.")
    listed = (*best, *token_ids)
    return float(logits[token_id]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in listed)


def logit_bias(logits: Logits, bias: Mapping[int, float]) -> Logits:
    """Add `bias` to the logits of the tokens it names.

    Raises:
        MisuseError: it names a token the model does not have.
    """
    biased = logits.copy()
    for token_id, value in bias.items():
        if token_id >= logits.size:
            raise MisuseError(f"logit_bias names token {token_id}; the model's tokens are 0 to {logits.size - 1}.")
        biased[token_id] += np.float32(value)
    return biased


def repetition_penalty(logits: Logits, ids: TokenIds, penalty: float) -> Logits:
    """Divide the positive and multiply the negative logits of all tokens in `ids` by `penalty`, once each.

    The rule of CTRL (Keskar et al. 2019, arXiv:1909.05858) as transformers applies it, to prompt and output alike.
    """
    penalized, seen = logits.copy(), _known(ids, logits.size)
    score = logits[seen].astype(np.float64)
    with np.errstate(over="ignore"):  # an extreme penalty gives an infinity, which RowSampler reports
        penalized[seen] = np.where(score < 0, score * penalty, score / penalty)
    return penalized


def frequency_penalty(logits: Logits, ids: TokenIds, penalty: float) -> Logits:
    """Subtract `penalty` from a token's logit each time it occurs in `ids`, the output so far (OpenAI's formula)."""
    penalized = logits.copy()
    seen, count = np.unique(_known(ids, logits.size), return_counts=True)
    penalized[seen] -= (penalty * count).astype(np.float32)
    return penalized


def presence_penalty(logits: Logits, ids: TokenIds, penalty: float) -> Logits:
    """Subtract `penalty` once from the logit of every token in `ids`, the output so far (OpenAI's formula)."""
    penalized = logits.copy()
    penalized[np.unique(_known(ids, logits.size))] -= np.float32(penalty)
    return penalized


def no_repeat_ngram(logits: Logits, ids: TokenIds, size: int) -> Logits:
    """Forbid every token that would complete, after `ids`, a run of `size` tokens already in `ids`."""
    if ids.size < size:
        return logits.copy()
    ngram = np.lib.stride_tricks.sliding_window_view(ids, size)  # (num_ngrams, size)
    begun = (ngram[:, :-1] == ids[ids.size + 1 - size :]).all(axis=1)
    return _without(logits, ngram[begun, -1])


def bad_words(logits: Logits, ids: TokenIds, sequences: Sequence[Sequence[int]]) -> Logits:
    """Forbid the last token of every (non-empty) sequence whose other tokens `ids` ends with."""
    longest = max(map(len, sequences), default=0)
    tail = ids[max(0, ids.size - longest) :].tolist()
    last = [word[-1] for word in sequences if tail[max(0, len(tail) + 1 - len(word)) :] == list(word[:-1])]
    return _without(logits, np.array(last, np.int64))


def suppress(logits: Logits, token_ids: Sequence[int]) -> Logits:
    """Forbid these tokens."""
    return _without(logits, np.array(token_ids, np.int64))


def min_tokens(logits: Logits, output_len: int, minimum: int, end_ids: Iterable[int]) -> Logits:
    """Forbid the tokens that would end the text while fewer than `minimum` tokens have been generated."""
    return _without(logits, np.array(list(end_ids), np.int64)) if output_len < minimum else logits.copy()


def force(logits: Logits, token_id: int) -> Logits:
    """Leave one token, at a score of 0.

    Raises:
        MisuseError: the model does not have it.
    """
    if token_id >= logits.size:
        raise MisuseError(f"Token {token_id} is forced; the model's tokens are 0 to {logits.size - 1}.")
    forced = np.full_like(logits, -np.inf)
    forced[token_id] = 0
    return forced


def allow(logits: Logits, allowed: NDArray[np.bool_]) -> Logits:
    """Forbid every token that is not allowed; `allowed` is bool (vocab,)."""
    return np.where(allowed, logits, np.float32(-np.inf))


def temperature(logits: Logits, value: float) -> Logits:
    """Divide by `value` (above 0) after shifting all logits so that the highest is 0, which does not change softmax.

    The shift allows `value` near 0: the other logits go to -inf, where the highest would overflow otherwise.
    """
    bounds = np.finfo(np.float32)
    divisor = np.float32(min(max(value, float(bounds.tiny)), float(bounds.max)))
    with np.errstate(over="ignore"):
        scaled: Logits = (logits - logits.max()) / divisor
    return scaled


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the `k` highest logits, and any equal to the last of them."""
    return np.where(logits < _kth_largest(logits, k), np.float32(-np.inf), logits)


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the fewest likeliest tokens whose probabilities reach `p`, at least one; among equals the lower ids.

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    left = _left(logits)
    probability = _softmax(logits[left])
    # Sorting is the cost. All tokens less likely than (1 - p) / vocab together weigh less than 1 - p, so they are
    # outside the nucleus; half of that leaves room for rounding and always keeps the likeliest.
    left, probability = _where(probability >= (1 - p) / (2 * left.size), left, probability)
    order = np.argsort(-probability, kind="stable")
    num_kept = int(probability[order].cumsum().searchsorted(p)) + 1  # the token that reaches p is included
    return _only(logits, left[order[:num_kept]])


def min_p(logits: Logits, p: float) -> Logits:
    """Keep the tokens at least `p` (above 0) times as likely as the likeliest.

    Nguyen et al. 2024, arXiv:2407.01082.
    """
    return np.where(logits < logits.max() + np.float32(np.log(p)), np.float32(-np.inf), logits)


def typical_p(logits: Logits, mass: float) -> Logits:
    """Keep the tokens whose surprise is nearest to the expected, until their probability reaches `mass`, with ties.

    Locally typical sampling (Meister et al. 2023, arXiv:2202.00666).
    """
    left = _left(logits)
    probability = _softmax(logits[left])
    left, probability = _where(probability > 0, left, probability)
    surprise = -np.log(probability)
    oddity = np.abs(surprise - (probability * surprise).sum())
    order = np.argsort(oddity, kind="stable")
    last = min(int(probability[order].cumsum().searchsorted(mass)), order.size - 1)
    return _only(logits, left[oddity <= oddity[order[last]]])


def _softmax(logits: Logits) -> NDArray[np.float64]:
    weight: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    probability: NDArray[np.float64] = weight / weight.sum()
    return probability


def _left(logits: Logits) -> NDArray[np.intp]:
    return np.flatnonzero(logits > -np.inf)


def _where(
    kept: NDArray[np.bool_], ids: NDArray[np.intp], probability: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    return ids[kept], probability[kept]


def _only(logits: Logits, ids: NDArray[np.intp]) -> Logits:
    kept = np.full_like(logits, -np.inf)
    kept[ids] = logits[ids]
    return kept


def _without(logits: Logits, ids: TokenIds) -> Logits:
    kept = logits.copy()
    kept[_known(ids, logits.size)] = -np.inf
    return kept


def _known(ids: TokenIds, vocab_size: int) -> TokenIds:
    # A tokenizer may have more tokens than the model has logits; a token without a logit cannot be picked.
    return ids[ids < vocab_size]


def _kth_largest(logits: Logits, k: int) -> np.float32:
    place = max(logits.size - k, 0)
    return np.float32(np.partition(logits, place)[place])
