"""An engine and its tokenizer, loaded while the bundle's files are hashed: 270 MB take a quarter of a second.

What is loaded is not run: it is given out once every hash has been found right. A TensorRT plan runs as it is loaded,
so its hash is checked first.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from piston.core.bundle.hashing import Hashing
from piston.core.bundle.manifest import EngineSpec
from piston.core.errors import EngineError, Error, MissingExtraError
from piston.runtime.backends.registry import Sizes, family_of
from piston.runtime.bundle import Bundle
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.tokenizer import Tokenizer

Result = TypeVar("Result")
INERT = ("ort-cpu", "ort-cuda")  # families whose files are data until a step is run


class Closeable(Protocol):
    """An engine or a session."""

    def close(self) -> None:
        """Free it."""


Loaded = TypeVar("Loaded", bound=Closeable)


@dataclass(frozen=True, slots=True)
class Opened(Generic[Loaded]):
    """What the object of a task is made of."""

    engine: Loaded
    tokenizer: Tokenizer
    template: ChatTemplate | None


def open_verified(
    bundle: Bundle,
    spec: EngineSpec,
    sizes: Sizes,
    hashing: Hashing | None = None,
    *,
    opening: Callable[[Bundle, EngineSpec, Sizes], Loaded],
) -> Opened[Loaded]:
    """Load the engine `spec` of a bundle that was opened unverified, its tokenizer and its template.

    `opening` is `open_engine`, or `open_session` where the graph has no states.

    Raises:
        BundleCorruptError: a file is not the recorded one; nothing stays open.
        BundleError, EngineError, MissingExtraError: of what is loaded, if the files are right.
    """
    hashing = hashing or Hashing.begin(bundle.manifest, bundle.directory)
    if family_of(spec.target) not in INERT:
        hashing.result()
        return Opened(opening(bundle, spec, sizes), bundle.tokenizer(), bundle.chat_template())
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(bundle.tokenizer)
        try:
            template = bundle.chat_template()
            engine = opening(bundle, spec, sizes)
        except Error:
            hashing.result()  # a damaged file is the better reason
            raise
        try:
            hashing.result()
            return Opened(engine, reading.result(), template)
        except BaseException:
            engine.close()
            raise


def open_first(specs: Sequence[EngineSpec], opened: Callable[[EngineSpec], Result]) -> tuple[Result, tuple[str, ...]]:
    """What `opened` makes of the first engine that its backend opens, and a sentence about each one before it.

    A check says whether an engine can run here; some things, such as libraries that are missing, only opening tells.

    Raises:
        EngineError, MissingExtraError: of the only engine, or an EngineError with the reason of each.
        Error: whatever else `opened` raises, at once: a damaged file is no reason to take another engine.
    """
    failed: list[tuple[EngineSpec, Error]] = []
    for spec in specs:
        try:
            result = opened(spec)
        except (EngineError, MissingExtraError) as problem:
            if len(specs) == 1:
                raise
            failed.append((spec, problem))
            continue
        return result, tuple(
            f"{other.target} could not be opened ({str(problem).rstrip('.')}); {spec.target} is used instead."
            for other, problem in failed
        )
    reasons = "; ".join(f"{spec.target}: {str(problem).rstrip('.')}" for spec, problem in failed)
    raise EngineError(f"No engine could be opened. {reasons}.") from failed[0][1]
