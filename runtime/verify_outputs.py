"""Golden outputs of encoders and modules, which a build records and `piston verify` compares.

Those of encoders are for some texts, those of modules for the examples that the bundle carries.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.examples import same_infinities
from piston.core.bundle.golden import Golden, GoldenExample, GoldenOutput
from piston.core.errors import BundleCorruptError, BundleError
from piston.runtime.encoder import EncoderModel
from piston.runtime.tasks.module import Module

if TYPE_CHECKING:
    from piston.runtime.backends.session import Session
    from piston.runtime.encoder import EncodedRow

TEXTS = (
    "The capital of France is Paris.",
    "A wonderful film, slow at first but moving in the end; I would watch it again.",
    "Wie heißt die Hauptstadt von Italien?",
    "No.",
)
PAIRS = (
    ("What is the capital of France?", "Paris is the capital and largest city of France."),
    ("What is the capital of France?", "Bread is made of flour, water, salt and yeast."),
    ("Wer schrieb den Faust?", "Goethe arbeitete sechzig Jahre lang an seinem Drama."),
)
PAIR_TASKS = {"question-answering", "text-ranking"}
LONGEST = 64  # tokens of a row, besides those of a prompt
NUM_VALUES = 256  # of an output at most, in equal steps over all of its numbers
DIGITS = 7  # significant ones of a recorded number
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputMismatch:
    """An output that is too far from the recorded one, or a text that became other tokens."""

    what: str  # "tokenizer" or "engine"
    prompt: str
    distance: float | None  # by the length of the recorded output; None of a tokenizer, or of other infinities
    allowed: float

    def __str__(self) -> str:
        if self.what == "tokenizer":
            return f"the tokenizer differs on {self.prompt!r:.60}"
        shown = (
            "NaN or infinite where the recorded one is not"
            if self.distance is None
            else f"{self.distance:.3g} of its length away"
        )
        return f"the engine differs on {self.prompt!r:.60}: the output is {shown}, allowed are {self.allowed:.2g}"


@dataclass(slots=True)
class OutputVerdict:
    """The result; passed without a mismatch.

    Attributes:
        num_prompts: what was compared.
        tolerance: the largest distance that is allowed, by the length of the recorded output.
        worst: the largest distance of all; infinite where an output has NaN, or other infinities than the recorded one.
        given: what the outputs are for.
        mismatches: the first of each text, example or sound.
    """

    num_prompts: int
    tolerance: float
    worst: float = 0.0
    given: str = "texts"
    mismatches: list[OutputMismatch] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether every output is the recorded one, and there was at least one."""
        return not self.mismatches and self.num_prompts > 0

    def compare(self, prompt: str, found: NDArray[Any], known: NDArray[Any]) -> bool:
        """Compare the numbers of one output with the recorded ones; whether they are near enough."""
        far = comparable_distance(found, known)
        self.worst = max(self.worst, math.inf if far is None else far)
        if far is not None and far <= self.tolerance:
            return True
        self.mismatches.append(OutputMismatch(what="engine", prompt=prompt, distance=far, allowed=self.tolerance))
        return False


def golden_of(model: EncoderModel) -> Golden:
    """The outputs of some texts, each alone; the noise is how far they move in one batch."""
    inputs = PAIRS if model.manifest.task in PAIR_TASKS else tuple((text,) for text in TEXTS)
    rows = [_row(model, texts) for texts in inputs]
    alone = [_outputs(model, [row])[0] for row in rows]
    together = _outputs(model, rows)
    noise = max(distance(found, wanted) for found, wanted in zip(together, alone, strict=True))
    outputs = tuple(
        GoldenOutput(
            texts=tuple(texts),
            ids=tuple(row.ids),
            types=tuple(row.type_ids),
            values=recorded(values),
        )
        for texts, row, values in zip(inputs, rows, alone, strict=True)
    )
    return Golden(outputs=outputs, noise=float(f"{noise:.2g}"), by="engine")


def verify_outputs(model: EncoderModel, expected: Golden, tolerance: float) -> OutputVerdict:
    """Encode the recorded texts and compare the outputs of each alone.

    Raises:
        BundleError: a recorded text does not fit the engine.
        EngineError: the engine failed.
    """
    verdict = OutputVerdict(len(expected.outputs), tolerance)
    for wanted in expected.outputs:
        prompt = " | ".join(wanted.texts)
        if len(wanted.ids) > model.max_length:
            raise BundleError(f"A golden text has {len(wanted.ids)} tokens, the engine reads {model.max_length}.")
        row = _row(model, wanted.texts)
        if (tuple(row.ids), tuple(row.type_ids)) != (wanted.ids, wanted.types):
            verdict.mismatches.append(OutputMismatch(what="tokenizer", prompt=prompt, distance=None, allowed=tolerance))
            continue
        (found,) = _outputs(model, [row])
        verdict.compare(prompt, found, np.array(wanted.values, np.float32))
    return verdict


def golden_examples(model: Module, reference: "Session") -> Golden:
    """The outputs of a module for its examples; the noise is how far those of the canonical graph are from them."""
    examples, noise = [], 0.0
    for example in model.examples:
        found, other = model.run(example.inputs), reference.run(example.inputs)
        values = {name: numbers_of(found[name]) for name in found}
        noise = max([noise, *(distance(numbers_of(other[name]), values[name]) for name in found)])
        examples.append(GoldenExample(values={name: recorded(numbers) for name, numbers in values.items()}))
    return Golden(examples=tuple(examples), noise=float(f"{noise:.2g}"), by="engine")


def verify_examples(model: Module, expected: Golden, tolerance: float) -> OutputVerdict:
    """Run the examples of the bundle and compare each output with the recorded one.

    Raises:
        BundleCorruptError: the examples cannot be read, or there are others than those that were recorded.
        EngineError: the engine failed.
    """
    examples = model.examples
    if len(examples) != len(expected.examples):
        raise BundleCorruptError(
            f"The bundle has {len(examples)} examples and golden outputs of {len(expected.examples)}; build it again."
        )
    verdict = OutputVerdict(len(examples), tolerance, given="examples")
    for number, (example, wanted) in enumerate(zip(examples, expected.examples, strict=True)):
        found = model.run(example.inputs)
        for name, values in wanted.values.items():
            what, known = f"example {number}, output {name}", np.array(values, np.float64)
            if not verdict.compare(what, numbers_of(found[name]), known):
                break  # one line for each example
    return verdict


def numbers_of(output: NDArray[Any], most: int = NUM_VALUES) -> NDArray[np.float64]:
    """At most so many numbers of an output, in equal steps over all of them."""
    whole = output.reshape(-1)
    return np.asarray(whole[:: max(1, -(-whole.size // most))], np.float64)


def recorded(numbers: NDArray[Any]) -> tuple[float, ...]:
    """As they are written."""
    return tuple(float(f"{value:.{DIGITS}g}") for value in numbers)


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Of two outputs with the same infinities, by the length of the second."""
    finite = np.isfinite(wanted)
    exact = wanted[finite]
    return float(np.linalg.norm(found[finite] - exact) / max(float(np.linalg.norm(exact)), 1e-12))


def comparable_distance(found: NDArray[Any], wanted: NDArray[Any]) -> float | None:
    """As `distance`; None where shapes or infinities differ, or there is NaN."""
    return distance(found, wanted) if same_infinities(found, wanted) else None


def _row(model: EncoderModel, texts: tuple[str, ...]) -> "EncodedRow":
    return model.row(*texts, max_tokens=min(LONGEST + model.num_prompt_tokens, model.max_length))


def _outputs(model: EncoderModel, rows: "list[EncodedRow]") -> list[Array]:
    found: dict[int, Array] = {}
    for index, output in model.outputs([row.ids for row in rows], [row.type_ids for row in rows]):
        whole = output.reshape(-1)
        found[index] = whole[:: -(-whole.size // NUM_VALUES)].copy()
    return [found[index] for index in range(len(rows))]
