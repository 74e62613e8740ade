"""Text to text: how far a model moved from the float model's answers, and chrF and BLEU where there are references."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.encoder_decoders import KL, NUM_TOKENS, TOP1, ForcedAnswer, compare_answers, compare_engines
from piston.evaluation.examples import Example, read_texts, with_targets
from piston.evaluation.references import BLEU, CHRF, bleu, chrf
from piston.evaluation.tasks import Comparison
from piston.runtime.backends.engine import Source
from piston.runtime.generate.generation import Generation, run
from piston.runtime.tasks.text2text_generation import DEFAULT_TOKENS, TextToText

METRICS = {metric.name: metric for metric in (KL, TOP1, CHRF, BLEU)}
DEFAULTS = {"fp": "kl<=0.001", "w8": "kl<=0.02", "w8a8": "kl<=0.1", "w4": "kl<=0.3"}
MODEL = TextToText
SOURCES = "texts"
FORCED = ("forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens")  # what a checkpoint says of every answer
read_examples = read_texts


def compare(candidate: Path, reference: Path, answers: Sequence[ForcedAnswer], progress: Progress) -> Comparison:
    """The next tokens of two model directories along the same answers."""
    return compare_answers(candidate, reference, answers, progress, SOURCES)


def compare_models(
    candidate: TextToText, reference: TextToText, examples: Sequence[Example], progress: Progress
) -> Comparison:
    """The same of loaded models, along the reference's greedy answers."""
    answers = forced_answers(reference, examples, len(examples), lambda _: None)
    return compare_engines(candidate.engine, reference.engine, answers, progress, SOURCES)


def quality(model: TextToText, path: Path) -> Mapping[str, float]:
    """ChrF and BLEU of greedy answers next to the targets of a file's examples."""
    examples = with_targets(read_examples(path), path)
    generations = [prepared(model, example, DEFAULT_TOKENS)[0] for example in examples]
    for _ in run(model.engine, generations):
        pass
    found = [generation.completion().text for generation in generations]
    wanted = [example.target or "" for example in examples]
    return {CHRF.name: chrf(found, wanted), BLEU.name: bleu(found, wanted)}


def forced_answers(
    model: TextToText, examples: Sequence[Example], num_answers: int, on_step: Callable[[int], None]
) -> list[ForcedAnswer]:
    """The targets of examples, and the model's own greedy answers to those that have none.

    Args:
        model: in float.
        examples: texts that are too long are cut at their end.
        num_answers: at most.
        on_step: gets the number of examples that are done.

    Raises:
        MisuseError: the model does not have a language that an example names.
        PromptTooLongError: a text cannot be cut so that it fits.
    """
    found: list[ForcedAnswer | None] = []
    waiting: list[tuple[int, Generation]] = []
    for example in examples[:num_answers]:
        generation, forced = prepared(model, example, NUM_TOKENS)
        if example.target is None:
            waiting.append((len(found), generation))
            found.append(None)
        else:
            ids = model.tokenizer.encode_answer(example.target)
            found.append(_answer(model, generation, [*([] if forced is None else [forced]), *ids][:NUM_TOKENS]))
    on_step(len(found) - len(waiting))
    for generation, _ in run(model.engine, [generation for _, generation in waiting]):
        if generation.is_finished:
            on_step(len(found) - sum(not item.is_finished for _, item in waiting))
    for place, generation in waiting:
        found[place] = _answer(model, generation, generation.request.output_ids)
    return [answer for answer in found if answer is not None]


def prepared(model: TextToText, example: Example, num_tokens: int, **options: object) -> tuple[Generation, int | None]:
    """A greedy generation with these options of sampling, and the token that begins its answer, if one is forced."""
    if not isinstance(example.source, str):
        raise MisuseError(f"{example.source} is no text; {model.manifest.model.name} reads texts.")
    language, prompt = None, ""
    settings = {name: model.manifest.generation[name] for name in FORCED if name in model.manifest.generation}
    if example.languages:
        language, forced, prompt = model.translation(*example.languages)
        settings |= {} if forced is None else {"forced_bos_token_id": forced}
    room = model.engine.cache.capacity - len(model.prefix)
    sampling = model.sampling(**settings, **options, max_tokens=min(num_tokens, room))
    (generation,) = model.prepare([prompt + example.source], sampling, truncate=True, language=language)
    return generation, sampling.forced_bos_token_id


def _answer(model: TextToText, generation: Generation, token_ids: Sequence[int]) -> ForcedAnswer:
    source = generation.request.source
    assert isinstance(source, Source)
    ends = set(model.manifest.tokenizer.eos_token_ids)
    kept = [token_id for token_id in token_ids if token_id not in ends]
    return ForcedAnswer(source, tuple(generation.request.prompt_ids), tuple(kept))
