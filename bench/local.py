"""Generates with a bundle in this process and records the time of each token; used by Piston's adapter."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from piston.runtime.bundle import Bundle
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.tasks.text_generation import open_model

if TYPE_CHECKING:
    from piston.runtime.generate.generation import Generation
    from piston.runtime.sampling.processors import Logits
    from piston.runtime.sampling.sampler import Pick

Clock = Callable[[], float]


class LocalRun:
    """Runs prompts of token ids greedily, every row to the same length, all rows together.

    Args:
        model: what generates; freed by `close`.
        clock: seconds, monotonic. Tests pass their own.
    """

    def __init__(self, model: LanguageModel, clock: Clock = time.perf_counter) -> None:
        self.parts: dict[str, float] = {}
        self._model = model
        self._clock = clock

    @classmethod
    def open(cls, path: str, options: Mapping[str, Any]) -> Self:
        """Load a bundle as the benchmark's options say; raises as `load` does."""
        model = open_model(
            Bundle.open(path, verify=False),
            target=options.get("target"),
            max_batch=options["max_batch"],
            max_length=options["max_length"],
            threads=options["threads"],
            best_only=True,
        )
        return cls(model)

    def run(self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None]) -> list[list[int]]:
        """Generate and return the token ids of each row; calls `step` whenever every row has one more token.

        Afterwards `parts` holds the seconds of choosing tokens from logits (`sample`) and, apart from the run, of
        encoding the prompts' text (`tokenize`).
        """
        from piston.runtime.generate.generation import run

        sampling = SamplingParams(max_tokens=gen_len, ignore_eos=True)
        generations = [self._model.prepare(list(prompt), sampling) for prompt in prompts]
        samplers = [_timed(generation, self._clock) for generation in generations]
        num_steps = 0
        for _ in run(self._model.engine, generations):
            while num_steps < min(len(generation.request.output_ids) for generation in generations):
                num_steps += 1
                step()
        self.parts = {"sample": sum(sampler.seconds for sampler in samplers), "tokenize": self._tokenizing(prompts)}
        return [list(generation.request.output_ids) for generation in generations]

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _tokenizing(self, prompts: Sequence[Sequence[int]]) -> float:
        texts = [self._model.tokenizer.decode(list(prompt)) for prompt in prompts]
        start = self._clock()
        for text in texts:
            self._model.tokenizer.encode(text)
        return self._clock() - start


class _TimedSampler:
    """A row's sampler that adds up the seconds of its picks."""

    def __init__(self, sampler: Any, clock: Clock) -> None:
        self.seconds = 0.0
        self._sampler = sampler
        self._clock = clock

    def pick(self, logits: "Logits") -> "Pick":
        start = self._clock()
        pick: Pick = self._sampler.pick(logits)
        self.seconds += self._clock() - start
        return pick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def _timed(generation: "Generation", clock: Clock) -> _TimedSampler:
    sampler = _TimedSampler(generation.request.sampler, clock)
    generation.request.sampler = sampler  # type: ignore[assignment]
    return sampler
