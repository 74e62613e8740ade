"""Generates with a bundle in this process and records the time of each token; used by Piston's adapter."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.tasks import task_module
from piston.runtime import tasks
from piston.runtime.bundle import Bundle
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.tasks.text_generation import open_model

if TYPE_CHECKING:
    from piston.runtime.backends.engine import Engine
    from piston.runtime.generate.generation import Generation
    from piston.runtime.model import LanguageModel
    from piston.runtime.sampling.processors import Logits
    from piston.runtime.sampling.sampler import Pick
    from piston.runtime.tasks.text2text_generation import TextToText

Clock = Callable[[], float]


class Timed(Protocol):
    """A loaded bundle under measurement; `parts` are figures of the last run beside its times."""

    parts: dict[str, float]

    def run(
        self, prompts: Sequence[Sequence[Any]], gen_len: int, step: Callable[[], None], num_beams: int = 1
    ) -> list[list[int]]:
        """The token ids of each row; calls `step` whenever every row has one more token."""

    def close(self) -> None:
        """Free the model."""


class LocalRun:
    """Runs prompts of token ids greedily or by a search, every row to the same length, all rows together.

    Args:
        model: what generates; freed by `close`.
        clock: seconds, monotonic. Tests pass their own.
    """

    def __init__(self, model: "LanguageModel | TextToText", clock: Clock = time.perf_counter) -> None:
        self.parts: dict[str, float] = {}
        self._model: Any = model
        self._clock = clock

    @classmethod
    def open(cls, path: str, options: Mapping[str, Any]) -> Timed:
        """Load a bundle as the benchmark's options say, in the class of its task; raises as `load` does."""
        bundle = Bundle.open(path, verify=False)
        sizes = {name: options[name] for name in ("max_batch", "max_length", "threads")}
        if (task := bundle.manifest.task) == TEXT_GENERATION:
            return cls(open_model(bundle, target=options.get("target"), best_only=True, **sizes))
        from piston.bench.local_sources import CLASSES
        from piston.runtime.backends.registry import select_engine

        best, _ = select_engine(bundle, options.get("target"))  # named, it is not replaced by another
        return CLASSES[task](task_module(tasks, task).open_model(bundle, target=best.target, **sizes))

    def run(
        self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None], num_beams: int = 1
    ) -> list[list[int]]:
        """Generate and return the token ids of each row; calls `step` whenever every row has one more token.

        Afterwards `parts` holds the seconds of choosing tokens from logits (`sample`, not of a search) and, apart from
        the run, of encoding the prompts' text (`tokenize`).
        """
        sampling = SamplingParams(max_tokens=gen_len, ignore_eos=True)
        generations = self._prepared(prompts, sampling)
        if num_beams > 1:
            self.parts = {"tokenize": self._tokenizing(prompts)}
            return self._searched(generations, step, num_beams)
        from piston.runtime.generate.generation import run

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

    def _prepared(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> "list[Generation]":
        return [self._model.prepare(list(prompt), sampling) for prompt in prompts]

    def _searched(self, generations: "list[Generation]", step: Callable[[], None], num_beams: int) -> list[list[int]]:
        """The best answer to each: a token of all beams is chosen when the engine's next step begins, or at the end.

        The first step is no such end where it reads the prompts, which no prefill did.
        """
        from piston.runtime.generate.hypotheses import search
        from piston.runtime.sampling.beam_params import BeamParams

        engine, has_read = self._model.engine, list[bool]()

        def begins() -> None:
            if has_read:
                step()
            has_read.append(True)

        with before_each(engine, "prefill", lambda: has_read.append(True)), before_each(engine, "step", begins):
            found = search(engine, generations, BeamParams(num_beams=num_beams))
        step()
        return [list(completion.token_ids) for completion in found]

    def _tokenizing(self, prompts: Sequence[Sequence[int]]) -> float:
        texts = [self._model.tokenizer.decode(list(prompt)) for prompt in prompts]
        start = self._clock()
        for text in texts:
            self._model.tokenizer.encode(text)
        return self._clock() - start


@contextmanager
def before_each(engine: "Engine", method: str, call: Callable[[], None]) -> Iterator[None]:
    """Call something before each call of a method of an engine, as long as the block lasts."""
    whole = getattr(engine, method)

    def watched(*arguments: Any, **options: Any) -> Any:
        call()
        return whole(*arguments, **options)

    setattr(engine, method, watched)
    try:
        yield
    finally:
        delattr(engine, method)  # of the instance: that of the class is there again


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
