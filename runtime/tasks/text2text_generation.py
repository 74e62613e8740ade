"""Encoder-decoders from text to text: a bundle becomes a TextToText."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from piston.core.arguments import checked_arguments
from piston.core.data_files import check_text
from piston.core.errors import MisuseError, PromptTooLongError
from piston.runtime.encoder_decoder import open_encoder_decoder
from piston.runtime.model import Stream
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.runtime.backends.engine import EncoderDecoderEngine
    from piston.runtime.generate.completion import Completion
    from piston.runtime.generate.generation import Generation
    from piston.runtime.text.tokenizer import Tokenizer

TASK = "text2text-generation"
PAIR = "translation_"  # what the names of prompts of translations begin with, such as translation_en_to_de
Frame = tuple[list[int], list[int]]  # token ids before and after a text
BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")  # settings of BeamParams
DEFAULT_TOKENS = 256  # of an answer, where the engine holds as many


class TextToText:
    """A loaded bundle that answers texts; a context manager that frees the engine.

    One thread at a time may use it; put several texts into one call instead.
    """

    TASK = TASK

    def __init__(self, manifest: "Manifest", engine: "EncoderDecoderEngine", tokenizer: "Tokenizer") -> None:
        self.manifest = manifest
        self.engine = engine
        self.tokenizer = tokenizer
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self.prefix: list[int] = [int(token_id) for token_id in manifest.settings.get("decoder_start") or [0]]

    @property
    def prompts(self) -> Mapping[str, str]:
        """What the checkpoint's authors put in front of texts, by the name of what is asked for."""
        return dict(self.manifest.settings.get("prompts") or {})

    @property
    def languages(self) -> Mapping[str, int]:
        """The token of each language that the model translates between, by its code; empty where it has no codes."""
        return dict(self.manifest.settings.get("languages") or {})

    @property
    def default_sampling(self) -> SamplingParams:
        """The sampling that the checkpoint's authors recommend; greedy without a recommendation.

        Raises:
            MisuseError: they recommend an option that Piston does not have.
        """
        options = {name: value for name, value in self.manifest.generation.items() if name not in BEAMS}
        longest, shortest = options.pop("max_length", None), options.pop("min_length", None)
        room = self.engine.cache.capacity - len(self.prefix)
        options.setdefault("max_tokens", min(room, longest - len(self.prefix) if longest else DEFAULT_TOKENS))
        if shortest:  # both count the tokens that begin an answer
            options.setdefault("min_tokens", min(max(shortest - len(self.prefix), 0), options["max_tokens"]))
        return SamplingParams.from_mapping(options)

    @property
    def default_beams(self) -> BeamParams | None:
        """The beam search that the checkpoint's authors recommend, if they do."""
        options = {name: self.manifest.generation[name] for name in BEAMS if name in self.manifest.generation}
        return BeamParams(**options) if (options.get("num_beams") or 1) > 1 else None

    def sampling(self, **options: object) -> SamplingParams:
        """Greedy sampling with these options; answers are as long as the engine holds, DEFAULT_TOKENS at most."""
        room = self.engine.cache.capacity - len(self.prefix)
        return SamplingParams.from_mapping({"max_tokens": min(room, DEFAULT_TOKENS)} | options)

    @checked_arguments
    def generate(
        self,
        texts: Sequence[str],
        sampling: SamplingParams | None = None,
        *,
        truncate: bool = False,
        prefix: Sequence[int] | None = None,
        beams: BeamParams | None = None,
        language: str | None = None,
    ) -> "list[Completion]":
        """Answer each text: n answers to the first, then to the second.

        Args:
            texts: none of them empty.
            sampling: by default greedy.
            truncate: cut texts of more tokens than the engine holds at their end; without it they are refused.
            prefix: token ids that begin every answer, instead of the checkpoint's.
            beams: search for the likeliest answers, instead of taking tokens one by one; each beam takes a slot.
            language: code of the texts' language, one of `languages`; by default the tokenizer's.

        Raises:
            MisuseError: an argument is of another type, a text is empty or is no Unicode, the options contradict each
                other, or there are more beams than slots.
            PromptTooLongError: a text, or an answer of max_tokens, is too long.
            EngineError: the backend fails.
        """
        from piston.runtime.generate.generation import run

        generations = self.prepare(texts, sampling, truncate=truncate, prefix=prefix, language=language)
        if beams is not None:
            from piston.runtime.generate.hypotheses import search

            return search(self.engine, generations, beams)
        for _ in run(self.engine, generations):
            pass
        return [generation.completion() for generation in generations]

    @checked_arguments
    def translate(
        self,
        texts: Sequence[str],
        *,
        source: str,
        target: str,
        sampling: SamplingParams | None = None,
        truncate: bool = False,
        beams: BeamParams | None = None,
    ) -> "list[Completion]":
        """Translate texts from one language to another, as transformers' translation pipeline does.

        A model with `languages` begins an answer with the target's token; one that was trained with prompts, such as
        T5, gets the prompt of the pair.

        Args:
            texts: none of them empty.
            source: code of their language, one of `languages`; of a model with prompts as these name it.
            target: code of the language of the answers.
            sampling: as of `generate`, as the next.
            truncate: cut texts that are too long.
            beams: search for the likeliest translations.

        Raises:
            MisuseError: the model does not have a language or the pair; otherwise as `generate`.
        """
        language, sampling, given = self.for_translation(texts, source, target, sampling)
        return self.generate(given, sampling, truncate=truncate, beams=beams, language=language)

    def for_translation(
        self, texts: Sequence[str], source: str, target: str, sampling: SamplingParams | None = None
    ) -> tuple[str | None, SamplingParams, list[str]]:
        """What `generate` and `prepare` are given to translate: `language`, `sampling`, and `texts` with prompts.

        Raises:
            MisuseError: the model does not have a language or the pair; the message lists what it has.
        """
        language, forced, prompt = self.translation(source, target)
        sampling = sampling or self.sampling()
        if forced is not None:
            sampling = dataclasses.replace(sampling, forced_bos_token_id=forced)
        given = [prompt + text if text.strip() else text for text in texts]
        return language, sampling, given

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The source and target languages that `translate` takes, by their codes, sorted."""
        if self.languages:
            return [(source, target) for source in sorted(self.languages) for target in sorted(self.languages)]
        names = (name.removeprefix(PAIR).partition("_to_") for name in self.prompts if name.startswith(PAIR))
        return sorted((source, target) for source, _, target in names)

    def translation(self, source: str, target: str) -> tuple[str | None, int | None, str]:
        """How to translate a pair: the code of the sources, the token that begins an answer, and the prompt.

        Raises:
            MisuseError: the model does not have it; the message lists what it has.
        """
        name = self.manifest.model.name
        if self.languages:
            for code in (source, target):
                if code not in self.languages:
                    raise MisuseError(f"{name} has no language {code!r}; it has: {', '.join(sorted(self.languages))}.")
            return source, self.languages[target], ""
        pairs = {key.removeprefix(PAIR): text for key, text in self.prompts.items() if key.startswith(PAIR)}
        if not pairs:
            raise MisuseError(f"{name} has no language codes; use generate, with the prompt that it was trained with.")
        if (pair := f"{source}_to_{target}") not in pairs:
            raise MisuseError(f"{name} has no translation {pair}; it has: {', '.join(sorted(pairs))}.")
        return None, None, pairs[pair]

    @checked_arguments
    def stream(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        *,
        truncate: bool = False,
        prefix: Sequence[int] | None = None,
    ) -> Stream:
        """Answer one text piece by piece; raises as `generate` does, before the first piece."""
        from piston.runtime.generate.request import check_fits

        if (sampling or self.sampling()).n != 1:
            raise MisuseError("A stream has one answer; use generate for several.")
        (generation,) = self.prepare([text], sampling, truncate=truncate, prefix=prefix)
        check_fits(self.engine, generation.request)
        return Stream(self.engine, generation)

    def prepare(
        self,
        texts: Iterable[str],
        sampling: SamplingParams | None = None,
        *,
        truncate: bool = False,
        prefix: Sequence[int] | None = None,
        language: str | None = None,
    ) -> "list[Generation]":
        """Generations of each text that are not yet run, for a scheduler; arguments and errors as of `generate`."""
        from piston.runtime.backends.engine import Source
        from piston.runtime.generate.generation import prepare

        began, sampling = time.perf_counter(), sampling or self.sampling()
        if sampling.echo:
            raise MisuseError("echo shows the prompt, and this model's answers have none; leave it out.")
        frame = self.frame(language)
        sources = [
            Source.of_text(self.encode(text, index, truncate=truncate, frame=frame)) for index, text in enumerate(texts)
        ]
        prompt = self.prefix if prefix is None else list(prefix)
        generations = prepare([prompt] * len(sources), sampling, self.tokenizer, self.manifest.tokenizer.eos_token_ids)
        for index, generation in enumerate(generations):
            generation.request.source = sources[index // sampling.n]
            generation.tokenizing, generation.started = time.perf_counter() - began, began
        return generations

    def frame(self, language: str | None = None) -> Frame:
        """The tokens before and after a source in a language, by default the tokenizer's own."""
        if language is None:
            return self.tokenizer.frame
        if language not in self.languages:
            known = ", ".join(sorted(self.languages)) or "none"
            raise MisuseError(f"{self.manifest.model.name} has no language {language!r}; it has: {known}.")
        parts = self.manifest.settings["source_frame"]
        token_id = self.languages[language]
        before, after = ([token_id if item < 0 else int(item) for item in parts[name]] for name in ("before", "after"))
        return before, after

    def split(self, text: str, language: str | None = None, prompt: str = "") -> list[str]:
        """A text in pieces that the engine holds behind a prompt, cut at the ends of sentences, never in one."""
        from piston.runtime.text.sentences import split_sentences

        before, behind = self.frame(language)
        room = self.engine.max_source - len(before) - len(behind)

        def fits(piece: str) -> bool:
            return len(self.tokenizer.encode(prompt + piece, add_special_tokens=False)) <= room

        return split_sentences(check_text(text, "The text"), fits)

    def encode(self, text: str, index: int = 0, *, truncate: bool = False, frame: Frame | None = None) -> list[int]:
        """Token ids of a text in a `frame`; `index` names it in errors, which are those of `generate`."""
        what = f"Text {index}"
        if not isinstance(text, str):
            raise MisuseError(f"{what} is {text!r:.40}; it must be a string.")
        if not text.strip():
            raise MisuseError(f"{what} is empty; leave it out.")
        before, behind = frame or self.tokenizer.frame
        ids = [*before, *self.tokenizer.encode(check_text(text, what), add_special_tokens=False), *behind]
        limit = self.engine.max_source
        if len(ids) <= limit:
            return ids
        if not truncate:
            raise PromptTooLongError(
                f"{what} has {len(ids):,} tokens; the engine reads up to {limit:,}. Shorten it, load with a larger "
                "max_length, or let its end be cut off (truncate)."
            )
        return [*ids[: limit - len(behind)], *behind]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


open_model = partial(open_encoder_decoder, TextToText)
