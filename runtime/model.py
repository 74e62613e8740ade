"""LanguageModel: a bundle, opened, behind generate, stream and chat.

What computes is imported when it is needed: `load` hashes files while numpy is imported.
"""

import operator
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from piston.core.bundle.hashing import Hashing
from piston.core.errors import MisuseError, TemplateError
from piston.runtime.bundle import Bundle
from piston.runtime.process_memory import container_memory
from piston.runtime.sampling.params import Sampling

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.runtime.backends.engine import Engine
    from piston.runtime.conversation import Conversation
    from piston.runtime.generate.completion import Completion
    from piston.runtime.generate.generation import Generation
    from piston.runtime.text.chat_template import ChatTemplate
    from piston.runtime.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class Stream(Iterator[str]):
    """Pieces of text as they become certain; `completion` holds what there is so far."""

    def __init__(self, engine: "Engine", generation: "Generation") -> None:
        from piston.runtime.generate.generation import run

        self._generation = generation
        self._steps = run(engine, [generation])

    def __next__(self) -> str:
        """The next piece that is not empty."""
        for _, text in self._steps:
            if text:
                return text
        raise StopIteration

    @property
    def completion(self) -> "Completion":
        """The whole answer once the stream has ended, the part that is there before."""
        return self._generation.completion()

    def close(self) -> None:
        """Stop generating and give the slot back."""
        self._steps.close()  # type: ignore[attr-defined]


class LanguageModel:
    """A loaded bundle; a context manager that frees the engine.

    Not for several threads at once: rows are batched inside one call instead.
    """

    def __init__(
        self, manifest: "Manifest", engine: "Engine", tokenizer: "Tokenizer", template: "ChatTemplate | None" = None
    ) -> None:
        from piston.runtime.generate.speculation import Verification

        self.manifest = manifest
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.remarks: tuple[str, ...] = ()  # what `load` did otherwise than the bundle was built for, and why
        self.verification = Verification()  # of guessed tokens: learned once for all rows

    def generate(
        self, prompt: Prompt | Sequence[Prompt], sampling: Sampling | None = None
    ) -> "Completion | list[Completion]":
        """Complete one prompt (text or token ids), or a list of them together.

        Returns one Completion for one prompt with n = 1, else a list: n answers to the first prompt, then the second.

        Raises:
            EmptyPromptError, PromptTooLongError, MisuseError: before anything is run.
        """
        began, sampling = time.perf_counter(), sampling or Sampling()
        is_single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Integral))
        prompts: Sequence[Any] = [prompt] if is_single else prompt
        return self._complete([self.encode(item) for item in prompts], sampling, began, is_single=is_single)

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Stream:
        """Complete one prompt piece by piece; raises as `generate` does, before the first piece."""
        from piston.runtime.generate.decode import check_fits

        began, sampling = time.perf_counter(), sampling or Sampling()
        if sampling.n != 1:
            raise MisuseError(f"A stream has one answer, n is {sampling.n}; use generate.")
        generation = self._prepare([self.encode(prompt)], sampling, began)[0]
        check_fits(self.engine, generation.request)
        return Stream(self.engine, generation)

    def chat(self, messages: Sequence[Message], sampling: Sampling | None = None) -> "Completion | list[Completion]":
        """Answer a list of {"role", "content"} messages through the checkpoint's template."""
        began = time.perf_counter()
        return self._complete([self.render(messages)], sampling or Sampling(), began, is_single=True)

    def conversation(self, system: str | None = None, sampling: Sampling | None = None) -> "Conversation":
        """A chat that keeps its cache between turns, and one slot until it is closed.

        Raises:
            MisuseError: every slot is taken, or the sampling asks for several answers or for the prompt's echo.
        """
        from piston.runtime.conversation import Conversation

        return Conversation(self, system=system, sampling=sampling or Sampling())

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to the start of the assistant's answer.

        Raises:
            TemplateError: the checkpoint has no template, or it refuses the messages.
        """
        if self.template is None:
            raise TemplateError(f"{self.manifest.model.name} has no chat template; use generate with a plain prompt.")
        return self.tokenizer.encode(self.template.render(messages), add_special_tokens=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass through."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [operator.index(item) for item in prompt]

    @property
    def default_sampling(self) -> Sampling:
        """What the checkpoint's authors recommend; greedy where they say nothing."""
        return Sampling.from_mapping(self.manifest.generation)

    def prepare(self, prompt_ids: list[int], sampling: Sampling, began: float | None = None) -> "Generation":
        """A generation of one row that is not yet run; its time counts from `began`, a time.perf_counter()."""
        return self._prepare([prompt_ids], sampling, time.perf_counter() if began is None else began)[0]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(
        self, prompts: list[list[int]], sampling: Sampling, began: float, *, is_single: bool
    ) -> "Completion | list[Completion]":
        from piston.runtime.generate.generation import run

        generations = self._prepare(prompts, sampling, began)
        for _ in run(self.engine, generations):
            pass
        completions = [generation.completion() for generation in generations]
        return completions[0] if is_single and sampling.n == 1 else completions

    def _prepare(self, prompts: list[list[int]], sampling: Sampling, began: float) -> "list[Generation]":
        from piston.runtime.generate.generation import prepare

        ends = self.manifest.tokenizer.eos_token_ids
        generations = prepare(prompts, sampling, self.tokenizer, ends, self.verification)
        for generation in generations:
            generation.tokenizing, generation.started = time.perf_counter() - began, began
        return generations


def load(
    bundle: str | os.PathLike[str],
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> LanguageModel:
    """Open a bundle and load its engine.

    Args:
        bundle: the directory `piston build` wrote.
        target: which engine, or family of engines; by default the best one that runs here (runtime/backends/registry.py).
        max_batch: slots, that is rows decoded together; by default what the bundle was built for, or on the
            CPU as many of them as a container's memory limit allows.
        max_length: positions of each slot; by default likewise.
        threads: of the engine; 0: one for each physical core, no more than a container's CPU quota allows.

    Raises:
        BundleError: it is missing, damaged, too new, or has no such engine, or none that runs here.
        MisuseError: more positions than the model has.
        HostMemoryError: a container's memory limit leaves no room.
        EngineError, MissingExtraError: the backend refuses it or is not installed.
    """
    opened = Bundle.open(Path(bundle), verify=False)
    hashing = Hashing.begin(opened.manifest, opened.directory)
    from piston.runtime.backends.registry import choose, family_of
    from piston.runtime.generate.speculation import Verification, exact_tokens
    from piston.runtime.loading import open_verified
    from piston.runtime.memory_budget import sizes_for

    manifest, (spec, _) = opened.manifest, choose(opened, target)
    sizes, remarks = sizes_for(
        manifest,
        spec,
        max_batch=max_batch,
        max_length=max_length,
        threads=threads,
        memory=container_memory() if family_of(spec.target) == "ort-cpu" else None,
    )
    parts = open_verified(opened, spec, sizes, hashing)
    model = LanguageModel(manifest, parts.engine, parts.tokenizer, parts.template)
    model.remarks, model.verification = remarks, Verification(exact_tokens(spec))
    return model
