"""Golden outputs of encoders: the outputs for some texts, which a build records and `piston verify` compares."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.golden import Golden, GoldenOutput
from piston.core.errors import BundleError
from piston.runtime.encoder import EncoderModel

if TYPE_CHECKING:
    from tokenizers import Encoding

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
LONGEST = 64  # tokens of a row
NUM_VALUES = 256  # of an output at most, in equal steps over all of its numbers
DIGITS = 7  # significant ones of a recorded number
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputMismatch:
    """An output that is too far from the recorded one, or a text that became other tokens."""

    what: str  # "tokenizer" or "engine"
    prompt: str
    distance: float | None  # by the length of the recorded output; None of a tokenizer, or of what is not finite
    allowed: float

    def __str__(self) -> str:
        if self.what == "tokenizer":
            return f"the tokenizer differs on {self.prompt!r:.60}"
        shown = "not finite" if self.distance is None else f"{self.distance:.3g} of its length away"
        return f"the engine differs on {self.prompt!r:.60}: the output is {shown}, allowed are {self.allowed:.2g}"


@dataclass(slots=True)
class OutputVerdict:
    """The result; passed without a mismatch."""

    num_prompts: int
    worst: float = 0.0
    mismatches: list[OutputMismatch] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether every output is the recorded one, and there was at least one."""
        return not self.mismatches and self.num_prompts > 0


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
            values=tuple(float(f"{value:.{DIGITS}g}") for value in values),
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
    verdict = OutputVerdict(len(expected.outputs))
    for wanted in expected.outputs:
        prompt = " | ".join(wanted.texts)
        if len(wanted.ids) > model.max_length:
            raise BundleError(f"A golden text has {len(wanted.ids)} tokens, the engine reads {model.max_length}.")
        row = _row(model, wanted.texts)
        if (tuple(row.ids), tuple(row.type_ids)) != (wanted.ids, wanted.types):
            verdict.mismatches.append(OutputMismatch(what="tokenizer", prompt=prompt, distance=None, allowed=tolerance))
            continue
        (found,) = _outputs(model, [row])
        known = np.array(wanted.values, np.float32)
        far = distance(found, known) if found.shape == known.shape and np.isfinite(found).all() else None
        verdict.worst = max(verdict.worst, far or 0.0)
        if far is None or not far <= tolerance:
            verdict.mismatches.append(OutputMismatch(what="engine", prompt=prompt, distance=far, allowed=tolerance))
    return verdict


def distance(found: Array, wanted: Array) -> float:
    """Of two outputs, by the length of the second."""
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def _row(model: EncoderModel, texts: tuple[str, ...]) -> "Encoding":
    return model.row(*texts, max_tokens=min(LONGEST, model.max_length))


def _outputs(model: EncoderModel, rows: "list[Encoding]") -> list[Array]:
    found: dict[int, Array] = {}
    for index, output in model.outputs([row.ids for row in rows], [row.type_ids for row in rows]):
        whole = output.reshape(-1)
        found[index] = whole[:: -(-whole.size // NUM_VALUES)].copy()
    return [found[index] for index in range(len(rows))]
