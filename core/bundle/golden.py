"""Golden outputs of a bundle's engines: verify.json, recorded when the bundle was built.

Of models that write, texts or what they hear, these are answers, of encoders the graph's outputs for some texts, of
modules of one's own those for the examples of the bundle.

Answers are greedy, and each engine has its own: quantized activations amplify the last bits of a sum, so two correct
engines of one model may choose different tokens. Where the two best tokens are closer than an engine's numerical noise,
either is correct: such a position is undecided and is not compared.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from piston.core.bundle.manifest import stays_inside
from piston.core.errors import BundleCorruptError, BundleNotFoundError
from piston.core.json_text import json_text
from piston.core.schema import SchemaError, validated

FILE_NAME = "verify.json"
# Smallest tolerance in logits, whatever the build measured: kernels of other machines add in another order.
FLOORS = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.5}
# Of outputs, by their length.
OUTPUT_FLOORS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
INT8_OUTPUT_FLOOR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenAnswer:
    """One prompt and its greedy continuation; `margins` are logits by which each token leads the second best.

    Of an encoder-decoder of texts the prompt is the source, and `start_ids` begin the answer. Of a speech model `audio`
    is the source, a file of the bundle with a sound of one window; `prompt` is its name, and `prompt_ids` begin the
    answer.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    margins: tuple[float, ...]
    start_ids: tuple[int, ...] = ()
    audio: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenOutput:
    """A text, or two that are read together, as tokens with their segments, and numbers of the graph's output."""

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    types: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenExample:
    """Numbers of each output, by its name, for one example of the bundle, or of an encoder for one sound."""

    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The answers of one engine, or its outputs where the model generates nothing.

    `noise` is how far its margins move, in logits, when the same positions are computed in another order; of outputs
    the distance by their length. Of speech `examples` are the encoder's outputs for the sound of each answer, and
    `output_noise` is theirs. They were recorded `by` the engine itself, or by the canonical graph where the engine
    could not run on the build machine.
    """

    answers: tuple[GoldenAnswer, ...] = ()
    outputs: tuple[GoldenOutput, ...] = ()
    examples: tuple[GoldenExample, ...] = ()
    noise: float
    output_noise: float | None = None
    by: Literal["engine", "canonical graph"]

    def threshold(self, dtype: str) -> float:
        """Smallest margin at which a token is compared: twice the noise, or the rounding of the engine's type."""
        return max(2 * self.noise, FLOORS.get(dtype, max(FLOORS.values())))

    def tolerance(self, dtype: str, *, is_int8: bool) -> float:
        """Largest distance of an output from the recorded one, by its length.

        `dtype` is what the engine computes in. Last bits of a sum flip codes of INT8 activations, and those move what
        follows; kernels of other machines flip others.
        """
        floor = OUTPUT_FLOORS.get(dtype, max(OUTPUT_FLOORS.values()))
        noise = self.noise if self.output_noise is None else self.output_noise
        return max(4 * noise, floor, INT8_OUTPUT_FLOOR if is_int8 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenByTarget:
    """The file: what each engine of the bundle must answer."""

    engines: Mapping[str, Golden]
    schema: Literal[1] = 1

    def of(self, target: str) -> Golden:
        """The answers of a target; raises BundleCorruptError if there are none."""
        if target not in self.engines:
            raise BundleCorruptError(f"{FILE_NAME} has no answers for {target}; build the bundle again.")
        return self.engines[target]

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read directory/verify.json.

        Raises:
            BundleNotFoundError: the bundle has no such file.
            BundleCorruptError: it does not have the form that a build writes.
        """
        path = directory / FILE_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found: Self = validated(cls, value, whole=FILE_NAME)
        except FileNotFoundError:
            raise BundleNotFoundError(
                f"{directory} has no {FILE_NAME}: it was built by an older Piston; build it again."
            ) from None
        except (SchemaError, ValueError, OSError, RecursionError) as problem:
            raise BundleCorruptError(f"{path} cannot be read ({problem}); build the bundle again.") from None
        for answer in (answer for engine in found.engines.values() for answer in engine.answers):
            if not answer.prompt_ids or not len(answer.token_ids) == len(answer.margins) > 0:
                raise BundleCorruptError(f"{path} has an answer without tokens or margins; build the bundle again.")
            if not stays_inside(answer.audio):
                raise BundleCorruptError(
                    f"{path} names {answer.audio!r}, which is outside the bundle; do not trust it."
                )
        for output in (output for engine in found.engines.values() for output in engine.outputs):
            if not output.texts or not output.values or not 0 < len(output.ids) == len(output.types):
                raise BundleCorruptError(f"{path} has an output without tokens or values; build the bundle again.")
        for example in (example for engine in found.engines.values() for example in engine.examples):
            if not example.values or not all(example.values.values()):
                raise BundleCorruptError(f"{path} has an example without values; build the bundle again.")
        return found

    def write(self, directory: Path) -> None:
        """Write directory/verify.json."""
        text = json_text(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")
