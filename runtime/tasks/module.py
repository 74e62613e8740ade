"""Modules of one's own: a bundle becomes a Module, arrays in, arrays out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.bundle.examples import EXAMPLES, Example, read_examples
from piston.core.bundle.hashing import Hashing
from piston.core.bundle.interface import MODULE, GraphInterface
from piston.core.errors import MisuseError
from piston.runtime.bundle import Bundle

if TYPE_CHECKING:
    from piston.core.bundle.manifest import EngineSpec, Manifest
    from piston.runtime.backends.session import Session

TASK = "module"
Array = NDArray[Any]


class InputError(MisuseError):
    """An input does not fit; `name` says which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Module:
    """A loaded bundle of a module; a context manager that frees the engine."""

    def __init__(self, manifest: "Manifest", session: "Session", directory: Path) -> None:
        self.manifest = manifest
        self.interface: GraphInterface = manifest.graphs[MODULE]
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self._session = session
        self._directory = directory

    @property
    def examples(self) -> list[Example]:
        """Inputs, and the outputs that the module gave for them when it was exported; raises BundleCorruptError."""
        return read_examples(self._directory / EXAMPLES)

    @checked_arguments
    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Compute every output by name.

        Args:
            feeds: an array for each input, of its type and its shape; axes of one name have one size.

        Raises:
            InputError: an input is missing, unknown, or of another type or shape.
            EngineError: the backend fails.
        """
        return self._session.run(self.checked(feeds))

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The feeds as arrays of the inputs' types; raises as `run` does."""
        return checked_feeds(self.interface, feeds)

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_feeds(interface: GraphInterface, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs of a graph as arrays of their types. Python numbers and lists become arrays; arrays stay as they are.

    Raises:
        InputError: an input is missing, unknown, or of another type or shape.
    """
    known = {tensor.name: tensor for tensor in interface.inputs}
    if set(feeds) != set(known):
        odd = min(set(feeds) ^ set(known))
        verb = "is no input" if odd in feeds else "is missing"
        raise InputError(odd, f"{odd!r} {verb}; the inputs are: {', '.join(known)}.")
    arrays = {}
    for name, given in feeds.items():
        array = given if isinstance(given, np.ndarray) else _from_lists(name, given, known[name].dtype)
        if array.dtype.name != known[name].dtype:
            raise InputError(name, f"{name!r} is {array.dtype}; it must be {known[name].dtype}.")
        arrays[name] = np.asarray(array, order="C")  # ascontiguousarray makes a number an array of one
    try:
        interface.sizes_of({name: array.shape for name, array in arrays.items()})
    except ValueError as problem:
        raise InputError(str(problem).partition(" ")[0], f"{problem}.") from None
    return arrays


def _from_lists(name: str, given: Any, dtype: str) -> Array:
    """Numbers in nested lists as an array; raises InputError where they are ragged, or are not numbers of the type."""
    try:
        array = np.asarray(given)
        with np.errstate(over="ignore", invalid="ignore"):
            found = array.astype(dtype)
    except (ValueError, TypeError, OverflowError):
        raise InputError(
            name, f"{name!r} is no array of {dtype}: lists must hold numbers and be of one length."
        ) from None
    is_number = array.dtype.kind in "biuf"
    is_exact = is_number and (found.dtype.kind == "f" or np.array_equal(found, array))
    if not is_exact or not np.array_equal(np.isfinite(found), np.isfinite(array)):
        raise InputError(name, f"{name!r} has values that are no {dtype}.")
    return found


def open_model(
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> Module:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`."""
    bundle.manifest.require_task(TASK, bundle.directory)
    if max_batch is not None or max_length is not None:
        raise MisuseError("A module has no max_batch and no max_length: its inputs say how large they may be.")
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.registry import Sizes, candidates, open_session
    from piston.runtime.loading import open_first, open_verified_engine

    def opened(spec: "EngineSpec") -> Module:
        sizes = Sizes(num_slots=1, capacity=1, threads=threads)
        session = open_verified_engine(bundle, spec, sizes, hashing, opening=open_session)
        model = Module(bundle.manifest, session, bundle.directory)
        model.target = spec.target
        return model

    model, remarks = open_first(candidates(bundle, target), opened)
    model.remarks = remarks
    return model
