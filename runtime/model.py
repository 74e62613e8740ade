"""LanguageModel: an open bundle with generate, stream and chat.

Modules that compute are imported when needed: `load` hashes files while numpy is imported.
"""

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from piston.core.arguments import checked_arguments
from piston.core.errors import MisuseError, TemplateError
from piston.core.tasks import task_module
from piston.runtime.bundle import Bundle
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams

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
    """An iterator over pieces of text as they become final; `completion` holds the answer so far."""

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
        """The whole answer after the stream has ended, before that the part so far."""
        return self._generation.completion()

    def close(self) -> None:
        """Stop generating and release the slot."""
        self._steps.close()


class LanguageModel:
    """A loaded bundle; a context manager that frees the engine.

    One thread at a time may use it; put several prompts into one call instead.
    """

    def __init__(
        self, manifest: "Manifest", engine: "Engine", tokenizer: "Tokenizer", template: "ChatTemplate | None" = None
    ) -> None:
        from piston.runtime.generate.speculation import Verification

        self.manifest = manifest
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self.verification = Verification()  # of drafted tokens: measured once for all rows

    @checked_arguments
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        beams: BeamParams | None = None,
    ) -> "Completion | list[Completion]":
        """Complete one prompt (text or token ids), or a list of them together.

        Returns one Completion for one prompt with n = 1, else a list: n answers to the first prompt, then the second.
        With `beams` it searches for the likeliest answers; each beam takes a slot.

        Raises:
            EmptyPromptError, PromptTooLongError, MisuseError: before anything is run.
        """
        began, sampling = time.perf_counter(), sampling or SamplingParams()
        is_single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Integral))
        prompts: Sequence[Any] = [prompt] if is_single else prompt
        if beams is not None:
            from piston.runtime.generate.hypotheses import search

            generations = self._prepare([self.encode(item) for item in prompts], sampling, began)
            found = search(self.engine, generations, beams)
            return found[0] if is_single and beams.num_return_sequences == 1 else found
        return self._complete([self.encode(item) for item in prompts], sampling, began, is_single=is_single)

    @checked_arguments
    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Stream:
        """Complete one prompt piece by piece; raises as `generate` does, before the first piece."""
        from piston.runtime.generate.request import check_fits

        began, sampling = time.perf_counter(), sampling or SamplingParams()
        if sampling.n != 1:
            raise MisuseError(f"A stream has one answer, n is {sampling.n}; use generate.")
        generation = self._prepare([self.encode(prompt)], sampling, began)[0]
        check_fits(self.engine, generation.request)
        return Stream(self.engine, generation)

    @checked_arguments
    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        sanitize_control_tokens: bool = True,
    ) -> "Completion | list[Completion]":
        """Answer a list of {"role", "content"} messages through the checkpoint's template; raises as `render` does."""
        began = time.perf_counter()
        ids = self.render(messages, sanitize_control_tokens=sanitize_control_tokens)
        return self._complete([ids], sampling or SamplingParams(), began, is_single=True)

    @checked_arguments
    def conversation(
        self, system: str | None = None, sampling: SamplingParams | None = None, *, sanitize_control_tokens: bool = True
    ) -> "Conversation":
        """A chat that keeps its cache between turns; it holds one slot until it is closed.

        For `sanitize_control_tokens` see `render`.

        Raises:
            MisuseError: every slot is taken, or the sampling asks for several answers or for the prompt's echo.
        """
        from piston.runtime.conversation import Conversation

        return Conversation(
            self, system=system, sampling=sampling or SamplingParams(), sanitize_control_tokens=sanitize_control_tokens
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        sanitize_control_tokens: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation up to the start of the assistant's answer.

        `tools` and `variables` are those of ChatTemplate.render.

        Control tokens in the messages, such as <|im_end|>, become ordinary text, so that the author of a message cannot
        forge turns; `sanitize_control_tokens=False` lets them be tokens (see ChatTemplate.encode).

        Raises:
            TemplateError: the checkpoint has no template, or it refuses the messages.
            MisuseError: they are not messages, or hold a control token that the tokenizer cannot write as text.
        """
        if self.template is None:
            raise TemplateError(f"{self.manifest.model.name} has no chat template; use generate with a plain prompt.")
        return self.template.encode(
            messages, self.tokenizer, sanitize_control_tokens=sanitize_control_tokens, tools=tools, **variables
        )

    @checked_arguments
    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass through."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    @property
    def default_sampling(self) -> SamplingParams:
        """The sampling that the checkpoint's authors recommend; greedy without a recommendation.

        Their max_length, which counts the prompt, is left out: the caller chooses lengths. So are suppressed tokens
        that the model does not have, which transformers passes over.

        Raises:
            MisuseError: they recommend an option that Piston does not have.
        """
        stated = SamplingParams.from_mapping({k: v for k, v in self.manifest.generation.items() if k != "max_length"})
        known = range(self.manifest.model.vocab_size)
        return dataclasses.replace(
            stated,
            suppress_tokens=tuple(token_id for token_id in stated.suppress_tokens if token_id in known),
            begin_suppress_tokens=tuple(token_id for token_id in stated.begin_suppress_tokens if token_id in known),
        )

    def prepare(self, prompt_ids: list[int], sampling: SamplingParams, began: float | None = None) -> "Generation":
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
        self, prompts: list[list[int]], sampling: SamplingParams, began: float, *, is_single: bool
    ) -> "Completion | list[Completion]":
        from piston.runtime.generate.generation import run

        generations = self._prepare(prompts, sampling, began)
        for _ in run(self.engine, generations):
            pass
        completions = [generation.completion() for generation in generations]
        return completions[0] if is_single and sampling.n == 1 else completions

    def _prepare(self, prompts: list[list[int]], sampling: SamplingParams, began: float) -> "list[Generation]":
        from piston.runtime.generate.generation import prepare

        ends = self.manifest.tokenizer.eos_token_ids
        generations = prepare(prompts, sampling, self.tokenizer, ends, self.verification)
        for generation in generations:
            generation.tokenizing, generation.started = time.perf_counter() - began, began
        return generations


@checked_arguments
def load(
    bundle: str | os.PathLike[str],
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
    public_key: str | os.PathLike[str] | None = None,
) -> Any:
    """Open a bundle and load its engine: the object of its task, such as LanguageModel (piston.runtime.tasks).

    Without a `target` the best engine that runs here is loaded (runtime/backends/registry.py). If it cannot be opened,
    the next one is, and `remarks` of the model gives the reason. A named target is never replaced.

    Args:
        bundle: the directory `piston build` wrote.
        target: which engine, or family of engines.
        max_batch: slots, that is rows decoded together; by default what the bundle was built for, or on the
            CPU as many of them as a container's memory limit allows.
        max_length: positions of each slot; by default likewise.
        threads: of the engine; 0: one for each physical core, no more than a container's CPU quota allows.
        public_key: the .pub file of the key that must have signed the bundle (minisign). The signature is checked
            on the same manifest bytes whose hashes the files are then compared with.

    Raises:
        BundleError: it is missing, damaged, too new, or has no such engine or none that runs here.
        SignatureError: the bundle is not signed with `public_key`.
        MisuseError: more positions than the model has, a key that cannot be read, or a task that this Piston does not
            know.
        HostMemoryError: a container's memory limit leaves no room.
        EngineError, MissingExtraError: the backend refuses it or is not installed.
    """
    signer = None
    if public_key is not None:
        from piston.core.bundle.signing import Signer

        signer = Signer.of(Path(public_key))
    opened = Bundle.open(Path(bundle), verify=False, signer=signer)
    from piston.runtime import tasks

    module = task_module(tasks, opened.manifest.task)
    return module.open_model(opened, target=target, max_batch=max_batch, max_length=max_length, threads=threads)
