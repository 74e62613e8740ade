"""What a bundle's engines must answer anywhere: verify.json, recorded when the bundle was built.

Tokens are those of the canonical graph, greedy. Where its two best tokens are closer than an engine may be off, either
is right: such a position is undecided, and nobody is judged by it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from piston.runtime.errors import BundleCorruptError, BundleNotFoundError
from piston.runtime.shape import ShapeError, shaped

FILE_NAME = "verify.json"
# Logits that an engine may be off however well the build's own agreed: kernels of other machines add in another order.
FLOORS = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAnswer:
    """One prompt and its greedy continuation; `margins` are logits by which each token leads the second best."""

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """All answers, and how far the margins of the engines that were run at build time were off at most, in logits."""

    answers: tuple[ExpectedAnswer, ...]
    noise: float
    schema: Literal[1] = 1

    def threshold(self, dtype: str) -> float:
        """Margin from which on an engine of that type is judged: twice the noise, or what its type loses."""
        return max(2 * self.noise, FLOORS.get(dtype, max(FLOORS.values())))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read directory/verify.json.

        Raises:
            BundleNotFoundError: the bundle was built without it.
            BundleCorruptError: it is not what a build writes.
        """
        path = directory / FILE_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found: Self = shaped(cls, value, whole=FILE_NAME)
        except FileNotFoundError:
            raise BundleNotFoundError(
                f"{directory} has no {FILE_NAME}; it was built before answers travelled with bundles: build it again."
            ) from None
        except (ShapeError, ValueError, OSError, RecursionError) as problem:
            raise BundleCorruptError(f"{path} cannot be read ({problem}); build the bundle again.") from None
        for answer in found.answers:
            if not answer.prompt_ids or not len(answer.token_ids) == len(answer.margins) > 0:
                raise BundleCorruptError(f"{path} has an answer without tokens or margins; build the bundle again.")
        return found

    def write(self, directory: Path) -> None:
        """Write directory/verify.json."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")
