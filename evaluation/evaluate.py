"""Runs one evaluation, from loaded models to a report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.core.statistics import Array
from piston.evaluation.answers import compare_answers
from piston.evaluation.corpus import Corpus
from piston.evaluation.prompts import Prompt
from piston.evaluation.report import Answers, Data, Model, Report
from piston.evaluation.scoring import score
from piston.evaluation.subject import Opened
from piston.evaluation.summary import agreement_of, data_of, mapped, mean_estimate, perplexity_of, windows_of
from piston.evaluation.windows import Windowing

SEED = 0  # of the bootstrap
_NATS_PER_BIT = 0.6931471805599453


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How to score, and which prompts both models answer greedily; used only with a reference."""

    windowing: Windowing = field(default_factory=Windowing)
    prompts: Sequence[Prompt] = ()
    answer_tokens: int = 48


def evaluate(
    candidate: Opened,
    reference: Opened | None,
    corpus: Corpus,
    options: EvalOptions,
    progress: Progress | None = None,
) -> Report:
    """Score the text and, against a reference, compare tokens and greedy answers.

    Raises:
        MisuseError: the text is shorter than a window or the window longer than a capacity, or the vocabularies differ.
        EngineError: an engine failed.
    """
    check_length(corpus, options.windowing)
    progress = progress or Progress(quiet=True)
    name = "scoring windows"
    with progress.phase(name):
        scores = score(
            candidate.model.engine,
            reference.model.engine if reference else None,
            corpus,
            options.windowing,
            lambda done, total: progress.step(name, done, total),
        )
    data = data_of(corpus, options.windowing, scores, candidate.model.tokenizer)
    model = _model(candidate, scores.nll, scores.counts, data, scores.tokens_per_s)
    if reference is None:
        return Report(data=data, candidate=model, windows=windows_of(scores), piston=version("piston"))
    nll = [item.reference_nll for item in scores.comparisons]
    return Report(
        data=data,
        candidate=model,
        windows=windows_of(scores),
        reference=_model(reference, nll, scores.counts, data, scores.reference_tokens_per_s),
        agreement=agreement_of(scores, SEED),
        answers=_answers(candidate, reference, options, progress),
        piston=version("piston"),
    )


def check_length(corpus: Corpus, windowing: Windowing) -> None:
    """Refuse a text shorter than one window: its tokens would not have the stated context."""
    longest = len(corpus.documents[0].prefix)
    if corpus.num_tokens + longest < windowing.length:
        raise MisuseError(
            f"{corpus.path} has {corpus.num_tokens:,} tokens, fewer than one window of {windowing.length:,}; "
            "give more text (or more --max-tokens), or lower --window and --stride."
        )
    if not any(True for _ in corpus.windows(windowing)):
        raise MisuseError(f"{corpus.path} has no document of two tokens; give longer ones.")


def _answers(candidate: Opened, reference: Opened, options: EvalOptions, progress: Progress) -> Answers | None:
    if not options.prompts:
        return None
    name = "comparing answers"
    with progress.phase(name):
        return compare_answers(
            candidate.model,
            reference.model,
            options.prompts,
            options.answer_tokens,
            lambda done, total: progress.step(name, done, total),
        )


def _model(opened: Opened, nll: list[Array], counts: Array, data: Data, tokens_per_s: float) -> Model:
    manifest = opened.model.manifest
    mean = mean_estimate(nll, counts, SEED)
    bits = data.num_scored / (_NATS_PER_BIT * data.num_bytes) if data.num_bytes else None
    return Model(
        path=opened.path,
        kind=manifest.kind,
        name=manifest.model.name,
        scheme=manifest.model.scheme,
        target=opened.target,
        nll=mean,
        perplexity=mapped(mean, perplexity_of),
        bits_per_byte=None if bits is None else mapped(mean, lambda value: value * bits),
        tokens_per_s=tokens_per_s,
    )
