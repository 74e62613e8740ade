"""SamplingParams: how tokens are chosen and when a text ends, as one frozen, validated set of options.

It knows names and ranges only: the arithmetic is in `processors`, the state of a generated row in `sampler`.
"""

import contextlib
import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from piston.core.errors import MisuseError
from piston.core.unicode import check_unicode
from piston.core.units import parse_count


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; the default is greedy, hence deterministic.

    Options mean what they mean in transformers; those it lacks mean what they mean in OpenAI's API or vLLM. `top_k`
    is off at -1 or 0, `min_p` and `no_repeat_ngram_size` at 0, `top_p`, `typical_p` and `repetition_penalty` at 1.
    A lone string is accepted for `stop` and `bad_words`, a list wherever a tuple is expected.

    Raises:
        MisuseError: an option is of the wrong type or out of range, or two of them contradict each other.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0  # 0 is greedy
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output only, as the next
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    # Stored as a read-only mapping, which is not hashable before Python 3.12: left out of the hash, not of comparison.
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)
    bad_words: tuple[str, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # the same in token ids; a lone end token is not forbidden
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()  # as the first token of an answer
    forced_bos_token_id: int | None = None  # the first token of an answer
    forced_eos_token_id: int | None = None  # the last one, where max_tokens ends it
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None  # None: fresh entropy for every row
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    logprob_token_ids: tuple[int, ...] = ()  # with logprobs: these tokens too, after the likeliest
    echo: bool = False
    # Most tokens to draft at once from the prompt and the answer so far. Changes no token, only the speed.
    prompt_lookup_num_tokens: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _NUMBERS.items():
            self._store(name, _number(name, getattr(self, name), allowed))
        if self.seed is not None:
            self._store("seed", _number("seed", self.seed, _SEED))
        for name in _FORCED:
            if (token_id := getattr(self, name)) is not None:
                self._store(name, _number(name, token_id, _TOKEN_ID))
        for name in ("bad_words", "stop"):
            self._store(name, _texts(name, getattr(self, name)))
        for name in ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens", "logprob_token_ids"):
            self._store(name, _token_ids(name, getattr(self, name)))
        self._store("bad_words_ids", _sequences("bad_words_ids", self.bad_words_ids))
        self._store("logit_bias", _bias(self.logit_bias))
        for name in ("include_stop_str_in_output", "ignore_eos", "logprobs", "echo"):
            if not isinstance(value := getattr(self, name), bool):
                raise _refusal(name, value, "True or False")
        _check_together(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping cannot be pickled or deep-copied as it stands.
        return SamplingParams.from_json, (self.to_json(),)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, without random numbers."""
        return self.temperature == 0

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Read options by name, as a command line, an HTTP body or transformers' `generate` spells them.

        None means "not given", even for an option Piston lacks. Synonyms such as `max_new_tokens` are understood;
        `do_sample=False` forces temperature 0, and `do_sample=True` without a temperature means 1.0.

        Raises:
            MisuseError: a name is unknown, unsupported or given twice, or a value is refused by `SamplingParams`.
        """
        given: dict[str, Any] = {}
        for name, value in options.items():
            if value is None and name in _UNSUPPORTED:
                continue
            option = _option(name)
            if value is None:
                continue
            if option in given:
                raise MisuseError(f"{option} is given twice, once as {name}; leave one out.")
            given[option] = value
        return cls(**_settle_do_sample(given))

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; raises like `from_mapping`."""
        return cls.from_mapping(options)

    def to_json(self) -> dict[str, Any]:
        """All options as a dict for `json.dumps`; ids in `logit_bias` become strings, as JSON requires."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias.items()}
        plain["bad_words_ids"] = [list(sequence) for sequence in self.bad_words_ids]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise MisuseError if an option names a token that a model of `vocab_size` tokens does not have."""
        named = {name: getattr(self, name) for name in _OF_TOKENS}
        named |= {name: [value] for name in _FORCED if (value := getattr(self, name)) is not None}
        for name, token_ids in named.items():
            if (largest := max(token_ids, default=0)) >= vocab_size:
                raise MisuseError(f"{name} names token {largest}; the model's tokens are 0 to {vocab_size - 1}.")

    def _store(self, name: str, value: object) -> None:
        # Only while constructing: the caller's list or numpy scalar becomes the declared type.
        object.__setattr__(self, name, value)


# Options that name tokens: several, and one.
_OF_TOKENS = ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens", "logit_bias")
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")


class _Range(NamedTuple):
    kind: type[int] | type[float]
    described: str
    lowest: float
    highest: float = math.inf
    is_open: bool = False  # the lowest value itself is excluded

    def holds(self, value: Any) -> bool:
        """Whether a number is inside; never for NaN, which compares false with everything."""
        return bool(self.lowest < value <= self.highest if self.is_open else self.lowest <= value <= self.highest)


_FINITE = sys.float_info.max
_SHARE = _Range(float, "a number above 0 and at most 1", 0, 1, is_open=True)
_PENALTY = _Range(float, "a number from -2 to 2", -2, 2)
_NUMBERS = {
    "max_tokens": _Range(int, "an integer of at least 1", 1),
    "min_tokens": _Range(int, "an integer of at least 0", 0),
    "temperature": _Range(float, "a finite number of at least 0 (0 is greedy)", 0, _FINITE),
    "top_k": _Range(int, "an integer of at least 1, or -1 or 0 for off", -1),
    "top_p": _SHARE,
    "min_p": _Range(float, "a number from 0 to 1", 0, 1),
    "typical_p": _SHARE,
    "repetition_penalty": _Range(float, "a finite number above 0 (1 is off)", 0, _FINITE, is_open=True),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "no_repeat_ngram_size": _Range(int, "an integer of at least 0 (0 is off)", 0),
    "n": _Range(int, "an integer of at least 1", 1),
    "top_logprobs": _Range(int, "an integer from 0 to 20", 0, 20),
    "prompt_lookup_num_tokens": _Range(int, "an integer from 0 to 15 (0 is off)", 0, 15),
}
_SEED = _Range(int, "an integer of at least 0, or None for a fresh one", 0)
_TOKEN_ID = _Range(int, "a token id, an integer of at least 0", 0)
_BIAS = _Range(float, "a number from -100 to 100", -100, 100)

_SYNONYMS = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "num_speculative_tokens": "prompt_lookup_num_tokens",
    "stop_strings": "stop",
}
# Options of other libraries that Piston does not support, each with the missing feature.
_UNSUPPORTED = {
    name: feature
    for feature, names in {
        "such beam search": "best_of diversity_penalty num_beam_groups use_beam_search",
        "beams among its sampling options (use BeamParams, or --num-beams)": "early_stopping length_penalty num_beams",
        "constrained output": "constraints force_words_ids grammar guided_choice guided_grammar guided_json "
        "guided_regex prefix_allowed_tokens_fn response_format structured_outputs",
        "limit that counts the prompt (use max_tokens and min_tokens)": "max_length min_length",
        "limit in seconds": "max_time",
        "such filter (use top_k, top_p, min_p or typical_p)": "epsilon_cutoff eta_cutoff mirostat tfs_z top_a top_h "
        "xtc_probability xtc_threshold",
        "such penalty": "encoder_no_repeat_ngram_size encoder_repetition_penalty exponential_decay_length_penalty",
        "such list (use bad_words, logit_bias or stop_token_ids)": "allowed_token_ids eos_token_id sequence_bias",
        "guidance by a second prompt": "guidance_scale negative_prompt_ids",
        "assisted or contrastive decoding": "assistant_model dola_layers penalty_alpha",
        "logprobs of the prompt apart from echo": "prompt_logprobs",
        "tool calling": "function_call functions parallel_tool_calls tool_choice tools",
        "watermarking": "watermarking_config",
    }.items()
    for name in names.split()
}


def _refusal(name: str, value: object, allowed: str) -> MisuseError:
    return MisuseError(f"{name} is {value!r}; it must be {allowed}.")


def _number(name: str, value: Any, allowed: _Range) -> Any:
    family = Integral if allowed.kind is int else Real  # numpy's scalars belong to these families; so does bool
    if isinstance(value, family) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond any float
            number = allowed.kind(value)  # type: ignore[call-overload]
            if allowed.holds(number):
                return number
    raise _refusal(name, value, allowed.described)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise _refusal(name, value, "a non-empty string or a list of them")
    return tuple(check_unicode(text, f"{name}[{i}]") for i, text in enumerate(texts))


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise _refusal(name, value, "a list of token ids")
    return tuple(_number(f"{name}[{i}]", token_id, _TOKEN_ID) for i, token_id in enumerate(value))


def _sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, list | tuple) and item for item in value):
        raise _refusal(name, value, "a list of non-empty lists of token ids")
    return tuple(_token_ids(f"{name}[{i}]", item) for i, item in enumerate(value))


def _bias(value: Any) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        raise _refusal("logit_bias", value, "a mapping of token ids to numbers from -100 to 100")
    bias: dict[int, float] = {}
    for key, number in value.items():
        # JSON has no integer keys: OpenAI's clients and to_json() write "42".
        count = parse_count(key) if isinstance(key, str) else None
        token_id = _number("a key of logit_bias", key if count is None else count, _TOKEN_ID)
        bias[token_id] = _number(f"logit_bias[{token_id}]", number, _BIAS)
    return MappingProxyType(bias)


def _check_together(sampling: SamplingParams) -> None:
    if sampling.min_tokens > sampling.max_tokens:
        raise _refusal("min_tokens", sampling.min_tokens, f"at most max_tokens, which is {sampling.max_tokens}")
    if sampling.top_logprobs and not sampling.logprobs:
        raise _refusal("top_logprobs", sampling.top_logprobs, "0 unless logprobs is True")
    if sampling.logprob_token_ids and not sampling.logprobs:
        raise _refusal("logprob_token_ids", sampling.logprob_token_ids, "empty unless logprobs is True")
    if sampling.n > 1 and sampling.is_greedy:
        raise MisuseError(
            f"n is {sampling.n} at temperature 0: greedy decoding would give {sampling.n} identical answers; "
            "it must be 1, or temperature above 0."
        )


def _option(name: str) -> str:
    """Name of the field (or `do_sample`) meant by `name`."""
    known = [field.name for field in dataclasses.fields(SamplingParams)] + [*_SYNONYMS, "do_sample"]
    if name in known:
        return _SYNONYMS.get(name, name)
    if name in _UNSUPPORTED:
        raise MisuseError(f"{name} is not supported: Piston has no {_UNSUPPORTED[name]}; leave it out.")
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(sorted(known))}."
    raise MisuseError(f"{name} is not an option of SamplingParams; {hint}")


def _settle_do_sample(given: dict[str, Any]) -> dict[str, Any]:
    do_sample = given.pop("do_sample", None)
    if do_sample is None:
        return given
    if not isinstance(do_sample, bool):
        raise _refusal("do_sample", do_sample, "True or False")
    temperature = given.get("temperature", 1.0) if do_sample else 0.0
    if do_sample and temperature == 0:
        raise MisuseError(
            "do_sample is True at temperature 0, which is greedy; it must be False, or temperature above 0."
        )
    return given | {"temperature": temperature}
