"""One row from prompt to completion: the decode loop's tokens become text, stop strings end the row."""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from piston.runtime.backends.engine import Engine
from piston.runtime.generate.completion import Completion, Drafts, PositionLogprobs, Timings, TokenLogprob
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request, Token
from piston.runtime.generate.speculation import INEXACT, Speculator, Verification
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint, FinishReason, Pick, RowSampler
from piston.runtime.text.stop_strings import StopScanner
from piston.runtime.text.stream_decoder import StreamDecoder
from piston.runtime.text.tokenizer import Tokenizer


@dataclass(slots=True, eq=False)
class Generation:
    """The text side of one request.

    `shown_ids` are special tokens that are text here, such as markers of tool calls.
    """

    request: Request
    tokenizer: Tokenizer
    sampling: SamplingParams
    shown_ids: frozenset[int] = frozenset()
    pieces: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    started: float = field(default_factory=time.perf_counter)
    tokenizing: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    _decoder: StreamDecoder = field(init=False)
    _scanner: StopScanner = field(init=False)
    _echo: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # Prompt and answer are one text: the answer is what it adds to the prompt.
        prompt_ids = self.request.prompt_ids
        if self.sampling.echo:
            self._decoder = StreamDecoder(self.tokenizer)
            self._echo = "".join(map(self._decoder.push, prompt_ids))
        else:
            self._decoder = StreamDecoder(self.tokenizer, after=prompt_ids)
        self._scanner = StopScanner(self.sampling.stop, include=self.sampling.include_stop_str_in_output)

    @property
    def is_finished(self) -> bool:
        """Whether the row will get no more tokens."""
        return self.finish_reason is not None

    def push(self, token: Token) -> str:
        """Add a token to this row; return the text that is now final, often none."""
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        text = self._push(token)
        self.tokenizing += time.perf_counter() - self.last_at
        return text

    def _push(self, token: Token) -> str:
        if self.sampling.logprobs:
            self.logprobs.append(self._logprobs_of(token.pick))
        text = self._text_of(token)
        self.finish_reason = token.finish_reason
        if self._scanner.stopped_by is not None:
            self.finish_reason = "stop"
            self.request.cancel()
        elif self.is_finished:
            text += self._scanner.push(self._decoder.flush())
            text += self._scanner.flush()
            if self._scanner.stopped_by is not None:
                self.finish_reason = "stop"
        if not self.pieces:
            text = self._echo + text
        self.pieces.append(text)
        return text

    def completion(self) -> Completion:
        """The completion so far, or the final one."""
        sampler, times = self.request.sampler, self.request.times
        token_stop = sampler.stopped_by if self.finish_reason == "stop" else None
        return Completion(
            text="".join(self.pieces),
            token_ids=tuple(self.request.output_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._scanner.stopped_by if self._scanner.stopped_by is not None else token_stop,
            num_prompt_tokens=len(self.request.prompt_ids),
            num_prefilled_tokens=self.request.num_prefilled,
            num_source_tokens=0 if self.request.source is None else self.request.source.length,
            seed=sampler.seed,
            timings=Timings(
                time_to_first_token=max(self.first_at - self.started, 0.0),
                total=max(self.last_at - self.started, 0.0),
                num_tokens=len(self.request.output_ids),
                queue=times.queue,
                prefill=times.prefill,
                tokenizing=self.tokenizing,
                sampling=times.sampling,
            ),
            drafts=_drafts_of(self.request.speculator),
            prompt_logprobs=self.prompt_logprobs(),
            logprobs=tuple(self.logprobs) if self.sampling.logprobs else None,
        )

    def _text_of(self, token: Token) -> str:
        token_id = token.pick.token_id
        # Stop strings count from min_tokens on, as stop tokens do, wherever they began.
        may_stop = len(self.request.output_ids) >= self.sampling.min_tokens
        if self.tokenizer.is_special(token_id):
            shown = token_id in self.shown_ids
            return self._scanner.push(self.tokenizer.token_of(token_id) or "", may_stop=may_stop, shown=shown)
        # The token's own reason: the sampler may be ahead, where several tokens were verified at once.
        if token.finish_reason == "stop" and not self.sampling.include_stop_str_in_output:
            return ""
        return self._scanner.push(self._decoder.push(token_id), may_stop=may_stop)

    @property
    def echo(self) -> str:
        """The prompt's text, where the answer begins with it."""
        return self._echo

    def prompt_logprobs(self) -> tuple[PositionLogprobs, ...] | None:
        """Of each prompt token but the first; None unless `echo` and `logprobs` are asked for together."""
        if self.request.num_prompt_logprobs is None:
            return None
        pairs = zip(self.request.prompt_ids[1:], self.request.prompt_logprobs, strict=False)
        return tuple(self._logprobs_of(Pick(token_id, *measured)) for token_id, measured in pairs)

    def _logprobs_of(self, pick: Pick) -> PositionLogprobs:
        assert pick.logprob is not None
        return PositionLogprobs(
            self._named(pick.token_id, pick.logprob), tuple(self._named(*pair) for pair in pick.top)
        )

    def _named(self, token_id: int, logprob: float) -> TokenLogprob:
        name = self.tokenizer.token_of(token_id) or ""
        return TokenLogprob(token_id, name, self.tokenizer.token_bytes(token_id), logprob)


def prepare(
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    tokenizer: Tokenizer,
    eos_token_ids: Iterable[int],
    verification: Verification | None = None,
    constrain: Callable[[], Constraint] | None = None,
) -> list[Generation]:
    """One generation for each of `sampling.n` answers to each prompt, prompt by prompt.

    `verification` is what is known of the engine they will run on, for drafts: those of prompt_lookup_num_tokens, and
    tokens that are forced by what `constrain` makes, which the tokens of each answer must follow.
    """
    bad_words = spellings(sampling.bad_words, tokenizer)
    limit, shared = sampling.prompt_lookup_num_tokens, verification or Verification()
    return [
        Generation(
            Request(
                list(prompt),
                RowSampler(
                    sampling,
                    prompt,
                    eos_token_ids=eos_token_ids,
                    bad_words_ids=bad_words,
                    index=row * sampling.n + answer,
                    constraint=None if constrain is None else constrain(),
                ),
                num_prompt_logprobs=sampling.top_logprobs if sampling.echo and sampling.logprobs else None,
                speculator=Speculator(shared, prompt, limit) if limit or constrain else None,
            ),
            tokenizer,
            sampling,
        )
        for row, prompt in enumerate(prompts)
        for answer in range(sampling.n)
    ]


def run(engine: Engine, generations: Sequence[Generation]) -> Generator[tuple[Generation, str]]:
    """Decode all rows together; yield each row's text as it becomes final."""
    of_request = {id(generation.request): generation for generation in generations}
    for token in decode(engine, [generation.request for generation in generations]):
        generation = of_request[id(token.request)]
        yield generation, generation.push(token)


def spellings(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each word with and without a leading space, since a text may contain either.

    The option of vLLM, where SentencePiece-like tokenizers miss the spelling inside a text.
    """
    found: list[list[int]] = []
    for word in words:
        for text in (word.lstrip(" ") or word, " " + word.lstrip(" ")):
            ids = tokenizer.encode_inside(text)
            if ids and ids not in found:
                found.append(ids)
    return found


def _drafts_of(speculator: Speculator | None) -> Drafts | None:
    if speculator is None:
        return None
    return Drafts(
        num_drafted=speculator.num_drafted,
        num_accepted=speculator.num_accepted,
        num_verified=speculator.num_verified,
        problem=INEXACT if speculator.verification.most_tokens == 0 else None,
    )
