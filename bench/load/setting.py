"""One load: how requests arrive, how long they are, and what their prompts share."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from piston.core.json_text import json_text

_SEED = 21
_FIRST_WORD = 100  # lower ids are often special tokens

Range = tuple[int, int]  # the least and the greatest length, both drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSetting:
    """Exactly one of `concurrency` (closed loop) and `rate` (open loop) is set."""

    concurrency: int | None = None  # requests at a time: the next one starts when one ends
    rate: float | None = None  # requests a second on average, with exponential gaps (a Poisson process)
    requests: int  # of one run
    prompt_len: Range
    gen_len: Range
    shared_prefix: int = 0  # first tokens that all prompts of a run share; part of prompt_len
    long_prompt: int = 0  # tokens of one more prompt that arrives in the middle of a run; 0: none
    prompts: str | None = None  # SHA-256 of a file's prompts; their lengths are in prompt_len
    slo: str = ""  # what a request must meet to count as goodput
    neighbours: int = 0  # busy processes next to the system

    @property
    def name(self) -> str:
        """A short name, for tables."""
        arriving = f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:.15g} a second"
        parts = [arriving, f"prompt {_written(self.prompt_len)}", f"{_written(self.gen_len)} tokens"]
        if self.shared_prefix:
            parts.append(f"{self.shared_prefix:,} shared")
        if self.long_prompt:
            parts.append(f"one prompt of {self.long_prompt:,}")
        if self.neighbours:
            parts.append(f"{self.neighbours} busy neighbour{'s' * (self.neighbours > 1)}")
        return ", ".join(parts)

    @property
    def num_positions(self) -> int:
        """Positions that one slot must hold."""
        return max(self.prompt_len[1], self.long_prompt) + self.gen_len[1]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request: when it is due in an open loop (seconds), its prompt, and the tokens to generate."""

    due: float
    prompt: tuple[int, ...]
    gen_len: int
    is_long: bool = False  # the one prompt that disturbs the others

    def body(self, model: str) -> bytes:
        """Of POST /v1/completions: greedy, exactly `gen_len` tokens, streamed, with the server's own count."""
        fields = {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.gen_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json_text(fields, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class LoadWork:
    """A setting and its prompts: `texts` of a file as token ids, or none for random ids."""

    setting: LoadSetting
    vocab_size: int
    texts: tuple[tuple[int, ...], ...] = ()

    def requests(self, round_index: int) -> list[LoadRequest]:
        """The requests of one run, the same for every system; other ones in each round, so that no cache answers."""
        setting = self.setting
        rng = np.random.default_rng([_SEED, setting.concurrency or 0, round_index])
        due = np.zeros(setting.requests)
        if setting.rate is not None:
            due = np.cumsum(rng.exponential(1 / setting.rate, setting.requests))
        shared = self._ids(rng, setting.shared_prefix)
        found = []
        for index in range(setting.requests):
            if self.texts:
                prompt = self.texts[(round_index * setting.requests + index) % len(self.texts)]
            else:
                length = int(rng.integers(setting.prompt_len[0], setting.prompt_len[1] + 1))
                prompt = shared + self._ids(rng, length - len(shared))
            gen_len = int(rng.integers(setting.gen_len[0], setting.gen_len[1] + 1))
            found.append(LoadRequest(float(due[index]), prompt, gen_len))
        if setting.long_prompt:
            middle = found[len(found) // 2].due
            found.append(LoadRequest(middle, self._ids(rng, setting.long_prompt), setting.gen_len[0], is_long=True))
        return found

    def _ids(self, rng: np.random.Generator, count: int) -> tuple[int, ...]:
        first = min(_FIRST_WORD, self.vocab_size // 2)
        return tuple(rng.integers(first, self.vocab_size, max(count, 0)).tolist())


def product(
    concurrency: Sequence[int], rates: Sequence[float], lengths: Sequence[tuple[Range, Range, int]]
) -> list[tuple[int | None, float | None, Range, Range, int]]:
    """Every way of arriving with all lengths (prompt, generated, shared), in the order given."""
    arrivals: list[tuple[int | None, float | None]] = [(count, None) for count in concurrency]
    arrivals += [(None, rate) for rate in rates]
    return [(*arrival, *length) for arrival, length in itertools.product(arrivals, lengths)]


def _written(lengths: Range) -> str:
    low, high = lengths
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
