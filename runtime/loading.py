"""Loads an engine and its tokenizer while the bundle's files are hashed: 270 MB take a quarter of a second.

Nothing is returned, so nothing runs, before every hash has been checked. Loading a TensorRT plan executes it, so its
hash is checked first.
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
INERT = ("ort-cpu", "ort-cuda")  # families whose files are not executed when they are loaded


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
        BundleError, EngineError, MissingExtraError: loading failed though the files are right.
    """
    hashing = hashing or Hashing.begin(bundle.manifest, bundle.directory)
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(bundle.tokenizer)
        try:
            template = bundle.chat_template()
        except Error:
            hashing.result()  # a damaged file is the more useful error
            raise
        engine = open_verified_engine(bundle, spec, sizes, hashing, opening=opening)
        try:
            return Opened(engine, reading.result(), template)
        except BaseException:
            engine.close()
            raise


def open_verified_engine(
    bundle: Bundle,
    spec: EngineSpec,
    sizes: Sizes,
    hashing: Hashing,
    *,
    opening: Callable[[Bundle, EngineSpec, Sizes], Loaded],
) -> Loaded:
    """As `open_verified`, of a bundle without a tokenizer."""
    if family_of(spec.target) not in INERT:
        hashing.result()
        return opening(bundle, spec, sizes)
    try:
        engine = opening(bundle, spec, sizes)
    except Error:
        hashing.result()  # as above
        raise
    try:
        hashing.result()
    except BaseException:
        engine.close()
        raise
    return engine


def open_first(specs: Sequence[EngineSpec], opened: Callable[[EngineSpec], Result]) -> tuple[Result, tuple[str, ...]]:
    """The result of `opened` for the first engine that can be opened, and a sentence about each one before it.

    Some problems, such as missing libraries, show only when an engine is opened, not when it is checked.

    Raises:
        EngineError, MissingExtraError: the error of the only engine, or an EngineError with the reason of each.
        Error: any other error of `opened`, at once: a damaged file is not a reason to take another engine.
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
